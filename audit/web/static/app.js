// Speed for the review page: keys, drafts, heartbeats, the next pair loaded ahead. Without this file the forms do all
// of it by themselves. Nothing is ever parsed from a string into the page; pages are fetched as documents.
"use strict";
(() => {
  const WEEK = 7 * 24 * 3600 * 1000;
  const store = {
    get(key) { try { return JSON.parse(localStorage.getItem(key)); } catch { return null; } },
    set(key, value) { try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* full or forbidden: the page still holds it */ } },
    drop(key) { try { localStorage.removeItem(key); } catch { /* as above */ } },
  };
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const form = () => document.getElementById("review");

  let ahead = null;        // { place, page }: the next pair, fetched and not shown yet
  let looking = null;      // the fetching of it, under way
  let busy = false;
  let ends = 0;            // when the hold on this pair ends, in ms
  let active = 0, since = 0; // ms spent looking at this pair
  let touched = 0;         // last sign of the person

  // --- the server ---
  async function send(place, body) {
    const response = await fetch(place, {
      method: "POST", body: new URLSearchParams(body), headers: { Accept: "application/json" }, redirect: "error",
    });
    const type = response.headers.get("content-type") || "";
    const answer = type.includes("json") ? await response.json() : { detail: await response.text() };
    return { ok: response.ok, status: response.status, ...answer };
  }
  function page(place) {
    return new Promise((resolve) => {
      const request = new XMLHttpRequest();
      request.open("GET", place);
      request.responseType = "document";
      request.onload = () => resolve(request.status === 200 ? request.response : null);
      request.onerror = () => resolve(null);
      request.send();
    });
  }

  // --- what is typed ---
  const draftKey = (f) => `audit:${f.dataset.person}:${f.dataset.item}`;
  function typed(f) {
    const data = new FormData(f);
    return {
      choice: data.get("choice"), confidence: data.get("confidence"), comment: data.get("comment"),
      left_flaws: data.getAll("left_flaws"), right_flaws: data.getAll("right_flaws"), active: spent(), at: Date.now(),
    };
  }
  function keep() {
    const f = form();
    if (f) store.set(draftKey(f), typed(f));
  }
  function restore(f) {
    const draft = store.get(draftKey(f));
    if (!draft) return;
    for (const name of ["choice", "confidence"])
      for (const input of all(`[name=${name}]`, f)) input.checked = input.value === draft[name];
    for (const name of ["left_flaws", "right_flaws"])
      for (const input of all(`[name=${name}]`, f)) input.checked = (draft[name] || []).includes(input.value);
    if (draft.comment) f.elements.comment.value = draft.comment;
    active = draft.active || 0;
  }
  function tidy() {
    try {
      for (const key of Object.keys(localStorage))
        if (key.startsWith("audit:") && Date.now() - ((store.get(key) || {}).at || 0) > WEEK) store.drop(key);
    } catch { /* storage is forbidden here */ }
  }
  function spent() { return active + (since ? Date.now() - since : 0); }

  // --- messages ---
  function notice(kind, title, text, onward) {
    const old = one(".notice");
    const box = document.createElement("div");
    box.className = `notice ${kind}`;
    box.setAttribute("role", "alert");
    const p = document.createElement("p"), b = document.createElement("b");
    b.textContent = title;
    p.append(b, " ", text);
    box.append(p);
    if (onward) {
      const button = document.createElement("button");
      button.setAttribute("form", "claim");
      button.textContent = "Go on with the next pair";
      box.append(button);
    }
    if (old) old.replaceWith(box); else document.getElementById("main").prepend(box);
    box.scrollIntoView({ block: "nearest" });
  }
  function refused(answer) {
    keep();
    const f = form();
    if (answer.token) f.elements.token.value = answer.token;
    if (answer.expires_in) hold(answer.expires_in);
    const onward = ["already_decided", "closed", "not_found"].includes(answer.code);
    notice("bad", "Not saved.", answer.detail || "The server did not accept it.", onward);
  }

  // --- from pair to pair ---
  async function submit(button) {
    const f = form();
    if (busy || !f) return;
    const action = button && button.hasAttribute("formaction") ? button.getAttribute("formaction") : f.getAttribute("action");
    const skipping = action.endsWith("/skip"), saving = action.endsWith("/answer");
    if (saving && !f.elements.choice.value) {
      notice("warn", "Which one is better?", "Choose left, tie or right first.");
      return;
    }
    f.elements.seconds.value = (spent() / 1000).toFixed(1);
    keep();
    const body = [...new FormData(f)];
    if (skipping) body.push(["reason", button.value]);
    busy = true;
    document.body.setAttribute("aria-busy", "true");
    try {
      if (action.endsWith("/release")) await looking; // else it would claim a pair after all were given back
      const answer = await send(action, body);
      if (!answer.ok) return refused(answer);
      store.drop(draftKey(f));
      await onward(answer);
    } catch {
      notice("bad", "No connection.", "Nothing is lost: what you typed is kept in this browser. Save again in a moment.");
    } finally {
      busy = false;
      document.body.removeAttribute("aria-busy");
    }
  }
  async function onward(answer) {
    const place = answer.next.split("?")[0];
    const ready = ahead && ahead.place === place ? ahead.page : null;
    ahead = null;
    const next = ready && place.startsWith("/items/") ? ready : await page(answer.next);
    const main = next && next.getElementById("main");
    if (!main) { location.assign(answer.next); return; }
    document.getElementById("main").replaceWith(document.adoptNode(main));
    document.title = next.title;
    history.pushState({ item: place }, "", place);
    if (ready) {
      // The page was fetched before the answer was known: it has the words of a page that follows nothing.
      const f = form();
      f.elements.token.value = answer.token;
      f.dataset.expires = answer.expires_in;
      const after = new URL(answer.next, location.href).searchParams.get("after");
      followed(after === "skipped" ? "Skipped." : "Saved.");
    }
    window.scrollTo(0, 0);
    begin();
    document.getElementById("main").focus({ preventScroll: true });
  }
  function followed(title) {
    const b = document.createElement("b"), undo = document.createElement("button"), kbd = document.createElement("kbd");
    b.textContent = title;
    kbd.textContent = "z";
    undo.className = "tool";
    undo.setAttribute("form", "undo");
    undo.append("Undo", kbd);
    one("[data-saved]").replaceChildren(b, " ", undo, " · ");
  }
  async function lookAhead() {
    const f = form();
    if (!f || ahead || busy) return;
    const csrf = f.elements.csrf.value, current = f.dataset.item;
    try {
      const answer = await send("/preload", { csrf, current });
      if (!answer.ok || !answer.next || !form() || form().dataset.item !== current) return;
      const fetched = await page(answer.next);
      if (fetched && form() && form().dataset.item === current) ahead = { place: answer.next, page: fetched };
    } catch { /* only a convenience */ }
  }

  // --- the hold on the pair ---
  function hold(seconds) { ends = Date.now() + 1000 * seconds; }
  async function beat() {
    const f = form();
    if (!f || document.hidden || Date.now() - touched > 1000 * f.dataset.lease) return;
    try {
      const answer = await send(`/items/${f.dataset.item}/heartbeat`, { csrf: f.elements.csrf.value, token: f.elements.token.value });
      if (answer.ok && f === form()) hold(answer.expires_in);
    } catch { /* the next beat may get through */ }
  }
  function watch() {
    const sign = one("[data-held]");
    if (!sign) return;
    const left = Math.round((ends - Date.now()) / 1000);
    const text = left > 90 ? "" : left > 0 ? `Held for you for ${left < 60 ? "less than a minute" : "a minute"} more`
      : "No longer held for you; saving will ask for it again";
    if (sign.textContent !== text) sign.textContent = text;
  }

  // --- tools ---
  const shortcuts = () => store.get("audit-shortcuts") !== false;
  async function differences(button) {
    const f = form(), on = button.getAttribute("aria-pressed") !== "true", item = f.dataset.item;
    const fetched = await page(`/items/${item}${on ? "?differences=on" : ""}`);
    if (!fetched || form() !== f || !fetched.getElementById("left-text")) return;
    for (const id of ["left-text", "right-text"]) {
      const fresh = document.adoptNode(fetched.getElementById(id));
      document.getElementById(id).replaceChildren(...fresh.childNodes);
    }
    button.setAttribute("aria-pressed", String(on));
    const words = one(".notice.warn p", fetched);
    if (on && words) notice("warn", "", words.textContent);
  }
  function mono(on) {
    document.body.classList.toggle("mono", on);
    const button = one("[data-do=mono]");
    if (button) button.setAttribute("aria-pressed", String(on));
  }
  function act(name, button) {
    if (name === "differences") differences(button);
    if (name === "mono") { const on = !document.body.classList.contains("mono"); store.set("audit-mono", on); mono(on); }
    if (name === "help") document.getElementById("help").showModal();
  }

  // --- keys ---
  function inText(target) { return target.matches("textarea, select, input:not([type=checkbox], [type=radio])"); }
  function pressed(event) {
    touched = Date.now();
    const f = form(), target = event.target, key = event.key;
    if (event.defaultPrevented || event.isComposing || one("dialog[open]")) return;
    if (key === "Enter" && (event.ctrlKey || event.metaKey) && f) { event.preventDefault(); submit(null); return; }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (key === "Escape") {
      const menu = one("details.menu[open]");
      if (menu) { menu.open = false; if (menu.contains(target)) one("summary", menu).focus(); } else if (inText(target)) target.blur();
      return;
    }
    if (inText(target) || !shortcuts()) return;
    // Within a group of radio buttons the arrows move, as everywhere.
    if (key.startsWith("Arrow") && target.matches("[type=radio]")) return;
    const skip = one(".dock .menu[open]");
    if (skip && /^[1-9]$/.test(key)) {
      const reason = one(`[data-skip="${key}"]`, skip);
      if (reason) { event.preventDefault(); if (!event.repeat) submit(reason); }
      return;
    }
    if (key === "z" && document.getElementById("undo")) { event.preventDefault(); if (!event.repeat) document.getElementById("undo").requestSubmit(); return; }
    if (key === "Enter") {
      // Enter on a link, button or menu does what that thing does.
      if (target.closest("a, button, summary")) return;
      if (f) { event.preventDefault(); if (!event.repeat) submit(null); return; }
    }
    const known = find(key) || (key.length === 1 && key > "~" ? find(event.code.replace("Key", "").toLowerCase()) : null);
    if (!known) return;
    event.preventDefault();
    if (event.repeat) return;
    if (known.matches("[name=choice]") && known.checked) { submit(null); return; }
    if (known.matches("textarea")) { known.focus(); return; }
    if (known.matches("summary")) { known.parentElement.open = !known.parentElement.open; return; }
    known.click();
    if (known.matches("[type=radio], [type=checkbox]")) keep();
  }
  function find(key) { return key ? all("[data-key]").find((node) => node.dataset.key === key) : null; }

  // --- one page, or one pair within it ---
  function begin() {
    for (const node of all("[data-script]")) node.hidden = false;
    mono(store.get("audit-mono") === true);
    const box = one("[data-shortcuts]");
    if (box) { box.checked = shortcuts(); box.addEventListener("change", () => store.set("audit-shortcuts", box.checked)); }
    const f = form();
    if (!f) return;
    active = 0;
    since = document.hidden ? 0 : Date.now();
    touched = Date.now();
    hold(Number(f.dataset.expires));
    restore(f);
    f.addEventListener("submit", (event) => {
      event.preventDefault();
      const button = event.submitter;
      if (button && button.dataset.do) { act(button.dataset.do, button); return; }
      submit(button);
    });
    f.addEventListener("input", keep);
    for (const node of all("button[type=button][data-do]", f)) node.addEventListener("click", () => act(node.dataset.do, node));
    watch();
    setTimeout(() => { looking = lookAhead(); }, 150);
  }

  document.addEventListener("keydown", pressed);
  document.addEventListener("pointerdown", () => { touched = Date.now(); });
  document.addEventListener("scroll", () => { touched = Date.now(); }, { passive: true });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { active = spent(); since = 0; } else { since = Date.now(); touched = since; beat(); }
  });
  document.addEventListener("click", (event) => {
    for (const menu of all("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  window.addEventListener("popstate", () => location.reload());
  tidy();
  begin();
  setInterval(watch, 5000);
  const lease = form() ? Number(form().dataset.lease) : 600;
  setInterval(beat, Math.max(5, lease / 4) * 1000);
})();
