// Keeps what a page shows up to date: every few seconds the page is asked for again, and its parts marked `data-live` are replaced. Without this script a page
// is complete, and stands still.
"use strict";
(() => {
  // In milliseconds. A page that takes the server long is asked for more seldom, so that an open page costs at most a hundredth of a core.
  const soonest = 3000, latest = 60000, share = 100;
  let every = soonest;
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
      const took = /dur=([0-9.]+)/.exec(answer.headers.get("server-timing") ?? "");
      every = Math.min(latest, Math.max(soonest, share * (took === null ? 0 : Number(took[1]))));
      const next = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of live()) {
        const fresh = next.querySelector(`[data-live="${part.dataset.live}"]`);
        if (fresh !== null && !inUse(part) && fresh.innerHTML !== part.innerHTML) part.replaceChildren(...fresh.childNodes);
      }
      gone.hidden = true;
    } catch {
      every = soonest;
      gone.hidden = false;
    }
  };
  const loop = async () => { await update(); setTimeout(loop, every); };
  setTimeout(loop, every);
  // Somebody who comes back to the page sees what is so now.
  document.addEventListener("visibilitychange", update);

  // Filtering begins while somebody types.
  const filter = document.getElementById("filter");
  if (filter !== null) {
    let waiting;
    filter.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => filter.form.requestSubmit(), 400); });
    if (filter.value !== "") { filter.focus(); filter.setSelectionRange(filter.value.length, filter.value.length); }
  }
})();
