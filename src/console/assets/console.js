// Keeps what a page shows up to date: every few seconds the page is asked for again, and its parts marked `data-live` are replaced. Without this script a page
// is complete, and stands still.
"use strict";
(() => {
  const every = 3000;
  const gone = document.getElementById("gone");
  const live = () => document.querySelectorAll("[data-live]");

  // A part that somebody works in is left alone.
  const inUse = part => part.contains(document.activeElement) || part.querySelector("details[open]") !== null ||
    (!getSelection().isCollapsed && part.contains(getSelection().anchorNode));

  const update = async () => {
    if (document.hidden || live().length === 0) return;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "manual", signal: AbortSignal.timeout(10000) });
      if (answer.type === "opaqueredirect") { location.reload(); return; }
      if (!answer.ok) throw new Error(String(answer.status));
      const next = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of live()) {
        const fresh = next.querySelector(`[data-live="${part.dataset.live}"]`);
        if (fresh !== null && !inUse(part) && fresh.innerHTML !== part.innerHTML) part.replaceChildren(...fresh.childNodes);
      }
      gone.hidden = true;
    } catch {
      gone.hidden = false;
    }
  };
  const loop = async () => { await update(); setTimeout(loop, every); };
  setTimeout(loop, every);

  // Filtering begins while somebody types.
  const filter = document.getElementById("filter");
  if (filter !== null) {
    let waiting;
    filter.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => filter.form.requestSubmit(), 400); });
    if (filter.value !== "") { filter.focus(); filter.setSelectionRange(filter.value.length, filter.value.length); }
  }
})();
