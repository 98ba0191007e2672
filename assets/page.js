// Small things that the page needs beyond Gradio: keys, roles and labels, citations, copies with the disclaimer.
(() => {
  // The page's language is the browser's first, where we have it (medchat/ui/language.py does the same).
  const asked = navigator.language.split("-")[0].toLowerCase();
  const language = asked in window.medchatWords ? asked : "en";
  const words = window.medchatWords[language];
  window.medchatLanguage = language;
  if (document.documentElement.lang.split("-")[0] !== language) document.documentElement.lang = language;
  document.documentElement.dir = language === "ar" ? "rtl" : "ltr";
  document.documentElement.style.setProperty("--ai", JSON.stringify(words.name));

  const DISCLAIMER = () => document.querySelector("#disclaimer")?.innerText.trim() ?? "";
  const visible = (element) => element && element.offsetParent !== null;
  const find = (selector) => [...document.querySelectorAll(selector)].find(visible);

  // Where the browser refuses storage, Gradio's own components would fail on it: they get a memory of this tab.
  class Memory {
    getItem(key) { return Object.hasOwn(this, key) ? this[key] : null; }
    setItem(key, value) { this[key] = String(value); }
    removeItem(key) { delete this[key]; }
  }
  for (const name of ["localStorage", "sessionStorage"]) {
    try {
      window[name].getItem("medchat");
    } catch {
      window.medchatBlocked = true;
      Object.defineProperty(window, name, { value: new Memory() });
    }
  }

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input:not([type=radio]):not([type=checkbox]), textarea, [contenteditable]");
    if (event.key === "Escape") find(".stop-button")?.click();
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const box = find("#message textarea, #question textarea");
      if (box) { box.focus(); event.preventDefault(); }
    }
  });

  // What the visitor reads of one entry, citations as [1].
  const textOf = (entry) => {
    const copy = entry.cloneNode(true);
    copy.querySelectorAll("a.cite").forEach((a) => a.replaceWith(a.textContent));
    copy.querySelectorAll("details.facts, summary .arrow").forEach((e) => e.remove());
    copy.querySelectorAll("details").forEach((d) => (d.open = true));
    copy.style.cssText = "position:absolute;left:-9999px;white-space:normal";
    document.body.append(copy);
    const text = copy.innerText.trim();
    copy.remove();
    return text;
  };
  const rowText = (row) => [...row.querySelectorAll(".message-content")].map(textOf).filter(Boolean).join("\n\n");
  const conversation = () =>
    [...document.querySelectorAll("#chat .message-row")]
      .map((row) => (row.classList.contains("user-row") ? words.you : words.medchat) + ":\n" + rowText(row))
      .concat(DISCLAIMER()).join("\n\n");
  window.medchatConversation = conversation;

  // Gradio copies the raw entries; ours are copied as they read, with the disclaimer under what the AI wrote.
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("#chat button");
    const label = button?.getAttribute("aria-label") ?? "";
    if (![words["chatbot.copy_message"], words.copy_all].includes(label)) return;
    event.stopImmediatePropagation();
    event.preventDefault();
    let text = conversation();
    if (label !== words.copy_all) {
      const row = button.closest(".message-buttons, [class*=message-buttons]").previousElementSibling;
      text = rowText(row) + (row.classList.contains("bot-row") ? "\n\n" + DISCLAIMER() : "");
    }
    navigator.clipboard?.writeText(text).then(() => {
      button.classList.add("copied");
      setTimeout(() => button.classList.remove("copied"), 1500);
    });
  }, true);

  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a.cite");
    if (!link) return;
    event.preventDefault();
    const sources = link.closest(".message-row")?.querySelector("details.sources");
    if (!sources) return;
    sources.open = true;
    const number = Number(link.dataset.number);
    (sources.querySelectorAll("li")[number - 1] ?? sources).scrollIntoView({ block: "nearest" });
    sources.querySelector("summary").focus();
  });

  // From a card to the choice of the country whose numbers it shows.
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("a.elsewhere")) return;
    event.preventDefault();
    const where = document.querySelector("#where");
    if (!visible(where.querySelector("#region"))) where.querySelector("button").click();
    setTimeout(() => { where.scrollIntoView({ block: "nearest" }); find("#region input:checked, #region input")?.focus(); }, 150);
  });

  // "[1]" and "[?]" in an answer become links to its sources.
  const cite = (root) => {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
      const node = walker.currentNode;
      if (/ \[(\d{1,2}|\?)\]/.test(node.data) && !node.parentElement.closest("a, code, pre, details")) found.push(node);
    }
    for (const node of found) {
      const parts = node.data.split(/( \[(?:\d{1,2}|\?)\])/);
      node.replaceWith(...parts.map((part) => {
        const number = part.match(/^ \[(\d{1,2}|\?)\]$/)?.[1];
        if (!number) return part;
        const link = document.createElement("a");
        link.className = number === "?" ? "cite doubt" : "cite";
        link.href = "#sources";
        link.dataset.number = number === "?" ? 0 : number;
        link.textContent = part;
        link.title = number === "?" ? words.unsupported : words.passage.replace("{number}", number);
        link.setAttribute("aria-label", link.title);
        return link;
      }));
    }
  };

  // Labels that Gradio has in English only, and those of its thumbs.
  const ENGLISH = { "Copy conversation": words.copy_all, Liked: words.liked, Disliked: words.disliked };
  const THUMBS = [words["chatbot.like"], words["chatbot.dislike"], words.liked, words.disliked];
  const set = (element, name, value) => element && element.getAttribute(name) !== value && element.setAttribute(name, value);
  const tend = () => {
    // Gradio writes dir="ltr" on each of its parts.
    if (language === "ar") document.querySelectorAll(".gradio-container [dir=ltr]").forEach((e) => set(e, "dir", e.matches("textarea, input") ? "auto" : "rtl"));
    // A log that is rewritten word by word is not for reading aloud: the status line and the cards are.
    document.querySelectorAll("#chat [role=log]").forEach((log) => { set(log, "aria-live", "off"); set(log, "tabindex", "0"); });
    document.querySelectorAll("#status, #compare-status").forEach((e) => set(e, "role", "status"));
    document.querySelectorAll("#tally, #added, #proof").forEach((e) => set(e, "aria-live", "polite"));
    document.querySelectorAll(".submit-button").forEach((b) => b.innerText.trim() || set(b, "aria-label", words.send));
    document.querySelectorAll(".stop-button").forEach((b) => set(b, "aria-label", words.stop));
    // One name for each group of radio buttons, so that the arrow keys go from one to the next.
    document.querySelectorAll("fieldset").forEach((group, i) => {
      set(group, "role", "radiogroup");
      set(group, "aria-label", group.querySelector("[data-testid=block-info]")?.innerText.trim() || words.choices);
      group.querySelectorAll("input[type=radio]").forEach((radio) => set(radio, "name", `group-${i}`));
    });
    document.querySelectorAll("#chat .message-content .prose > :not(details, .card), .card > *").forEach((e) => set(e, "dir", "auto"));
    document.querySelectorAll("#chat button[aria-label]").forEach((button) => {
      const label = button.getAttribute("aria-label");
      if (label in ENGLISH) { set(button, "aria-label", ENGLISH[label]); set(button, "title", ENGLISH[label]); }
      if (THUMBS.includes(button.getAttribute("aria-label"))) set(button, "data-thumb", "");
    });
    document.querySelectorAll("#chat [data-testid=user], #chat [data-testid=bot]").forEach((e) => e.removeAttribute("aria-label"));
    document.querySelectorAll("#chat .edit-textarea, #chat .message textarea").forEach((t) => set(t, "aria-label", words.edit));
    document.querySelectorAll("#chat .bot-row .message-content .prose").forEach(cite);
  };
  // A new card is read from its top, where Gradio scrolls to its end a little later: for 3 s, or until the reader does
  // anything, it is held there. Once for each question: who chooses another country for it is not moved.
  const lastCard = () => [...document.querySelectorAll("#chat .message-row")].at(-1)?.querySelector(".card");
  let carded = 0; // rows, the last of them with a card
  let held = 0; // until when
  const hold = () => { if (performance.now() < held) lastCard()?.scrollIntoView(); };
  const holdNewCard = () => {
    const rows = lastCard() ? document.querySelectorAll("#chat .message-row").length : 0;
    if (rows && rows !== carded) held = performance.now() + 3000;
    carded = rows;
    hold();
  };
  document.addEventListener("scroll", hold, true);
  for (const act of ["pointerdown", "touchstart", "wheel", "keydown"])
    document.addEventListener(act, () => { held = 0; }, { capture: true, passive: true });
  let due = false;
  new MutationObserver(() => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; tend(); holdNewCard(); });
  }).observe(document.documentElement, { childList: true, subtree: true });
})();
