// The conversations in this browser: the list, what is stored of it, and files. Runs once, in Gradio's panel, with
// `element`, `props`, `trigger` and `watch`. Texts of visitors and files are set as text, never as markup.
const PREFIX = "medchat-talk-";
const MOST = 200; // conversations
const LARGEST = 3_500_000; // characters of all, of the 5 million that browsers give a page
const words = props.words[window.medchatLanguage];
const $ = (selector) => element.querySelector(selector);
const say = (name, more = {}) => words[name].replace(/\{(\w+)\}/g, (all, key) => more[key] ?? all);
const talks = new Map(); // number -> { id, title, changed, text, token }
const gone = new Set(); // deleted here: an answer that ends later does not bring them back
let current = "";
let locked = [];
let hidden = false; // private mode

// --- storage ---

const forget = (id) => { localStorage.removeItem(PREFIX + id); talks.delete(id); };
const room = () => [...talks.values()].reduce((sum, talk) => sum + talk.token.length, 0);
const keep = (talk) => {
  if (hidden || gone.has(talk.id)) return;
  talks.set(talk.id, talk);
  const left = [];
  const oldest = [...talks.values()].sort((a, b) => a.changed - b.changed).filter((other) => other.id !== talk.id);
  while ((talks.size > MOST || room() > LARGEST) && oldest.length) {
    left.push(oldest[0].title);
    forget(oldest.shift().id);
  }
  if (left.length) tell(say("evicted", { title: left.join("; ") }));
  try {
    localStorage.setItem(PREFIX + talk.id, talk.token);
  } catch {
    localStorage.removeItem(PREFIX + talk.id); // not half of it: what was asked before the last answer
    tell(say("full"), { alert: true });
  }
};

// Nothing at all is written by this page while it is private, by Gradio neither.
const write = Storage.prototype.setItem;
Storage.prototype.setItem = function (...pair) { if (!hidden) write.apply(this, pair); };

// --- what is told ---

const tell = (text, { alert = false, button, press, list = [] } = {}) => {
  const told = $("#talk-told");
  told.replaceChildren();
  told.className = text ? (alert ? "told alarm" : "told") : "";
  if (!text) return;
  const line = document.createElement("p");
  line.textContent = text;
  told.append(line);
  if (list.length) {
    const items = document.createElement("ul");
    items.append(...list.map((problem) => Object.assign(document.createElement("li"), { textContent: problem })));
    told.append(items);
  }
  if (button) told.append(control(button, "plain", press));
};
const control = (text, look, press) => {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: text, className: look });
  button.addEventListener("click", press);
  return button;
};

// --- the list ---

const simple = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
const when = (seconds) => {
  const day = new Date(seconds * 1000);
  const today = day.toDateString() === new Date().toDateString();
  return day.toLocaleString(document.documentElement.lang, today ? { timeStyle: "short" } : { dateStyle: "medium" });
};
const ICONS = {
  rename: '<path d="M4 20h4L19 9l-4-4L4 16z"/>',
  delete: '<path d="M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13"/>',
};
const icon = (name, talk, press) => {
  const button = control("", `icon ${name}`, press);
  button.setAttribute("aria-label", say(name, talk));
  button.title = button.getAttribute("aria-label");
  button.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true">${ICONS[name]}</svg>`;
  return button;
};
const row = (talk) => {
  const item = document.createElement("li");
  item.dataset.id = talk.id;
  const open = control("", "open", () => visit(talk));
  open.append(
    Object.assign(document.createElement("span"), { textContent: talk.title || words.untitled, dir: "auto" }),
    Object.assign(document.createElement("time"), { textContent: when(talk.changed) }),
  );
  if (talk.id === current) open.setAttribute("aria-current", "true");
  item.append(open, icon("rename", talk, () => rename(item, talk)), icon("delete", talk, () => remove(talk)));
  return item;
};
const line = (id) => [...$("#talk-list").children].find((item) => item.dataset.id === id);
const draw = () => {
  if ($("#talk-list input")) return; // a title is being typed
  const sought = simple($("#find-talk").value.trim());
  const all = [...talks.values()].sort((a, b) => b.changed - a.changed);
  const found = all.filter((talk) => simple(`${talk.title}\n${talk.text}`).includes(sought));
  const focused = element.contains(document.activeElement) && document.activeElement.closest("li");
  const which = focused && [...focused.children].indexOf(document.activeElement);
  $("#talk-list").replaceChildren(...found.map(row));
  if (focused) line(focused.dataset.id)?.children[which]?.focus({ preventScroll: true });
  $("#talk-count").textContent = all.length ? (sought ? say("matches", { count: found.length }) : all.length) : "";
  $("#no-talk").textContent = found.length ? "" : words[all.length ? "no_match" : "none"];
  $("#find-talk").hidden = all.length < 2;
  $("#locked").hidden = !locked.length;
  $("#locked p").textContent = say("locked", { count: locked.length });
};

const running = () => Boolean(document.querySelector("#message .stop-button"));
const narrow = () => matchMedia("(max-width: 860px)").matches;
const visit = (talk) => { tell(""); trigger("open_talk", { token: talk.token, running: running() }); };
const start = () => { tell(""); trigger("new_talk", { running: running() && !gone.has(current) }); };
const remove = (talk) => {
  const next = line(talk.id)?.nextElementSibling?.dataset.id;
  gone.add(talk.id);
  forget(talk.id);
  if (talk.id === current) start();
  draw();
  (line(next)?.querySelector(".open") ?? $("#talks summary")).focus();
  tell(say("deleted", talk), { button: words.undo, press: () => {
    gone.delete(talk.id);
    keep(talk);
    draw();
    tell(words.restored);
  } });
};
const rename = (item, talk) => {
  const box = Object.assign(document.createElement("input"), { value: talk.title, maxLength: 120, dir: "auto" });
  box.setAttribute("aria-label", say("new_title", talk));
  let open = true;
  const end = (title) => {
    if (!open) return;
    open = false;
    box.remove();
    if (title && title !== talk.title) trigger("rename_talk", { token: talk.token, title });
    draw();
    line(talk.id)?.querySelector(".rename").focus();
  };
  box.addEventListener("keydown", (event) => {
    event.stopPropagation(); // Escape would stop an answer
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault(); // Enter would press the button that gets the focus next
    end(event.key === "Enter" ? box.value.trim() : "");
  });
  box.addEventListener("blur", () => end(box.value.trim()));
  item.replaceChildren(box);
  box.focus();
  box.select();
};

// --- private mode ---

const showMode = () => {
  document.body.classList.toggle("private", hidden);
  $("#private").setAttribute("aria-pressed", hidden);
  $("#private-note").hidden = !hidden;
  $("#private-note").textContent = words.private;
  $("#kept-talks").hidden = $("#talk-count").hidden = hidden;
  tell("");
  draw();
};
$("#private").addEventListener("click", () => {
  if (!hidden) forget(current);
  else start(); // what was private is left behind, and never kept
  hidden = !hidden;
  showMode();
});

// --- files ---

const offer = (file, print) => {
  const url = URL.createObjectURL(new Blob([file.text], { type: `${file.type};charset=utf-8` }));
  if (!print || !open(`${url}#print`)) {
    const link = Object.assign(document.createElement("a"), { href: url, download: file.name });
    document.body.append(link);
    link.click();
    link.remove();
  }
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
};
const take = async (file) => {
  if (!file) return;
  if (file.size > 1_000_000) return tell(words.too_large, { alert: true });
  try {
    trigger("import_talk", { text: await file.text() });
  } catch {
    tell(words.unreadable, { alert: true });
  }
};
element.querySelectorAll("[data-export]").forEach((button) =>
  button.addEventListener("click", () => { tell(""); trigger("export_talk", { format: button.dataset.export }); }));
$("#import-talk").addEventListener("click", () => $("#import-file").click());
$("#import-file").addEventListener("change", (event) => { take(event.target.files[0]); event.target.value = ""; });

$("#delete-all").addEventListener("click", () => $("#confirm-delete").showModal());
$("#confirm-delete").addEventListener("click", ({ target }) => {
  if (!target.value) return;
  $("#confirm-delete").close();
  if (target.value !== "yes") return;
  for (const id of talks.keys()) gone.add(id);
  if (current) gone.add(current);
  Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)).forEach((key) => localStorage.removeItem(key));
  talks.clear();
  locked = [];
  start();
  draw();
  tell(words.deleted_all);
});

// --- the rest ---

const receive = (news) => {
  if (!news?.number) return;
  if (news.list) {
    for (const id of [...talks.keys()]) if (!localStorage.getItem(PREFIX + id)) talks.delete(id); // another tab's doing
    for (const talk of news.list) talks.set(talk.id, { ...talk, token: localStorage.getItem(PREFIX + talk.id) });
    locked = news.locked;
  }
  if ("current" in news) current = news.current;
  if (news.emptied) forget(news.emptied);
  if (news.kept) keep(news.kept);
  if (news.imported) tell(say("imported", news.kept));
  if (news.file) offer(news.file, news.print);
  if (news.problems) tell(words.refused, { alert: true, list: [...news.problems, news.fix] });
  if (news.told) tell(words[news.told]);
  draw();
  if (news.shown) {
    [...document.querySelectorAll("#close-feedback")].find((b) => b.offsetParent)?.click(); // it was about another one
    if (narrow()) $("#talks").open = false;
    document.querySelector(narrow() && talks.has(current) ? "#chat [role=log]" : "#message textarea")?.focus();
  }
};
watch("value", () => receive(props.value));

$("#new-talk").addEventListener("click", start);
$("#find-talk").addEventListener("input", draw);
$("#locked button").textContent = words.remove_locked;
$("#locked button").addEventListener("click", () => {
  locked.forEach(forget);
  locked = [];
  draw();
  tell(words.removed_locked);
  $("#talks summary").focus();
});
addEventListener("storage", (event) => { if (event.key?.startsWith(PREFIX) || !event.key) trigger("unlock_talks"); });
if (narrow()) $("#talks").open = false;
if (window.medchatBlocked) tell(words.blocked);
draw();
receive(props.value);
