"""`python -m benchmarks.pictures`: the README's pictures, taken of the running app in Chromium.

Starts the app, writes assets/screenshot.png, assets/cards.png and assets/chat.webp (animated, below 2 MB).
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from benchmarks.serve import ROOT, start_app

ASSETS = ROOT / "assets"
QUESTION = "What are the symptoms of iron deficiency anemia?"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


def main() -> None:
    """Take all pictures."""
    process, _, client, _ = start_app()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            chat(browser, client.src)
            cards(browser, client.src)
            film(browser, client.src)
            browser.close()
    finally:
        process.terminate()
        process.wait()


def chat(browser: Any, url: str) -> None:
    """One answer with its sources, on a desktop in light and a phone in dark, side by side."""
    pictures = []
    for size, scheme in ((DESKTOP, "light"), (PHONE, "dark")):
        page = opened(browser, url, size, scheme)
        ask(page, QUESTION)
        page.locator("#chat .facts").wait_for()
        page.locator("#chat .sources summary").click()
        page.wait_for_timeout(1500)
        to_top(page)
        pictures.append(shot(page))
        page.context.close()
    save(beside(pictures), ASSETS / "screenshot.png")


def cards(browser: Any, url: str) -> None:
    """The cards of an emergency and of a crisis on a phone, in light and dark."""
    pictures = []
    for scheme, text, level in (
        ("light", "my husband has crushing chest pain and cant breathe", "emergency"),
        ("dark", "I want to kill myself", "crisis"),
    ):
        page = opened(browser, url, PHONE, scheme)
        ask(page, text)
        page.locator(f"#chat .card.{level}").wait_for()
        page.locator("#message .submit-button").wait_for()
        page.wait_for_timeout(1500)
        to_top(page)
        pictures.append(shot(page))
        page.context.close()
    save(beside(pictures), ASSETS / "cards.png")


def film(browser: Any, url: str) -> None:
    """From the first sight of the page to an answer with its sources, as an animated WebP."""
    page = opened(browser, url, {"width": 960, "height": 720}, "light")
    frames, times = [shot(page)], [1200]
    page.locator("#message textarea").press_sequentially(QUESTION, delay=0)
    frames, times = [*frames, shot(page)], [*times, 700]
    page.locator("#message textarea").press("Enter")
    for _ in range(60):
        frames, times = [*frames, shot(page)], [*times, 160]
        if page.locator("#chat .facts").count():
            break
        page.wait_for_timeout(150)
    page.locator("#chat .sources summary").click()
    page.wait_for_timeout(300)
    frames, times = [*frames, shot(page)], [*times, 3500]
    page.context.close()
    small = [frame.resize((800, 600), Image.Resampling.LANCZOS) for frame in frames]
    path = ASSETS / "chat.webp"
    small[0].save(path, save_all=True, append_images=small[1:], duration=times, loop=0, quality=60, method=4)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, {len(small)} frames")


def opened(browser: Any, url: str, size: dict[str, int], scheme: str) -> Any:
    """Return the page of a new visitor who has accepted the note."""
    context = browser.new_context(viewport=size, color_scheme=scheme, locale="en-US")
    page = context.new_page()
    page.set_default_timeout(180_000)
    page.goto(url)
    page.locator("#agree").click()
    page.locator("#agree").wait_for(state="hidden")
    page.wait_for_timeout(500)
    return page


def ask(page: Any, text: str) -> None:
    """Send a question."""
    page.locator("#message textarea").fill(text)
    page.locator("#message textarea").press("Enter")


def to_top(page: Any) -> None:
    """Scroll the conversation and the page back to their start, once Gradio has stopped following the end."""
    page.locator("#chat .bubble-wrap").evaluate("element => element.scrollTo({top: 0, behavior: 'instant'})")
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    page.wait_for_timeout(400)


def shot(page: Any) -> Image.Image:
    """Return the page as it looks now."""
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def beside(pictures: list[Image.Image]) -> Image.Image:
    """Return pictures side by side, scaled to the lowest one's height."""
    height = min(picture.height for picture in pictures)
    scaled = [p.resize((round(p.width * height / p.height), height), Image.Resampling.LANCZOS) for p in pictures]
    whole = Image.new("RGB", (sum(p.width for p in scaled) + 16 * (len(scaled) - 1), height), "white")
    x = 0
    for picture in scaled:
        whole.paste(picture, (x, 0))
        x += picture.width + 16
    return whole


def save(picture: Image.Image, path: Path) -> None:
    """Write a small PNG: 256 colours are plenty for a page."""
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
