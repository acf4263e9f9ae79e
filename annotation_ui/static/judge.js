"use strict";
// Fills the Gradio page: shows the next pair at once, answers keys, and keeps every judgement in the browser
// (localStorage, one outbox for each person) until the server has confirmed it.
(() => {
  const KEYS = { 1: "left", a: "left", 2: "right", b: "right", 3: "tie", t: "tie", 4: "skip", s: "skip" };
  const BUTTONS = { "pick-a": "left", "pick-b": "right", "pick-tie": "tie", "pick-skip": "skip" };
  const SAID = { left: "A is better", right: "B is better", tie: "Tie", skip: "Skipped" };
  const TOO_SOON_MS = 250; // nobody judges this fast: the second press of a double press
  const IDLE_MS = 60000; // time without a touch of mouse or keys does not count as active
  const queue = []; // tasks in hand; the first is on the screen
  const history = []; // what can be undone on this page: {task, token}
  const judged = new Set(); // assignments answered here or in another tab
  const refused = []; // what the server would not take, shown until the page is loaded again
  const page = {}; // the elements
  let user = null, progress = { mine: 0, done: 0, wanted: 0 };
  let shown = null, shownAt = 0, active = 0, touched = Date.now(), raw = false;
  let sending = false, problem = "", last = "", later = 0;

  const token = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
  const byId = (id) => document.getElementById(id);

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // The outbox
  const boxName = () => `rlhf-outbox-${user.id}`;
  function outbox() {
    try {
      return JSON.parse(localStorage.getItem(boxName())) || [];
    } catch {
      return [];
    }
  }
  function keep(box) {
    localStorage.setItem(boxName(), JSON.stringify(box));
  }

  function put(kind, body) {
    keep([...outbox(), { kind, body }]);
    flush();
  }

  async function post(path, body) {
    return fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(15000),
    });
  }

  async function flush() {
    if (sending) return;
    sending = true;
    try {
      for (let box = outbox(); box.length; box = outbox()) {
        const { kind, body } = box[0];
        const answer = await post(kind === "undo" ? "/api/v1/undo" : "/api/v1/judgements", body);
        if (answer.status === 401) return void (problem = "signed out");
        if (answer.status >= 500 || answer.status === 429) return void (problem = "the server has a problem");
        const data = await answer.json();
        keep(outbox().filter((one) => one.body.client_token !== body.client_token));
        problem = "";
        if (!answer.ok) refused.push(`${SAID[body.choice] || "Undo"} was refused: ${data.error}`);
        else take(data, kind === "undo" && body.of === null ? data.task : null);
      }
      if (problem === "offline" || problem.startsWith("the server")) problem = "";
    } catch {
      problem = "offline";
    } finally {
      sending = false;
      tell();
    }
  }

  // What everybody has done: the server counts at most once a second, so the number is asked for again a little later.
  async function refresh() {
    const answer = await fetch("/api/v1/progress").catch(() => null);
    if (!answer || !answer.ok) return;
    progress = await answer.json();
    tell();
  }

  // Tasks
  function take(data, undone) {
    progress = data.progress;
    clearTimeout(later);
    later = setTimeout(refresh, 1200);
    if (undone) {
      judged.delete(undone.assignment);
      if (!queue.some((t) => t.assignment === undone.assignment)) queue.unshift(undone);
    }
    for (const task of data.tasks || []) {
      if (!judged.has(task.assignment) && !queue.some((t) => t.assignment === task.assignment)) queue.push(task);
    }
    show();
  }

  async function more() {
    if (queue.length || outbox().length) return;
    try {
      const answer = await post("/api/v1/tasks/next", {});
      if (answer.status === 401) problem = "signed out";
      else if (!answer.ok) problem = "the server has a problem";
      else {
        problem = "";
        take(await answer.json());
      }
    } catch {
      problem = "offline";
    }
    tell();
  }

  function decide(choice, byKey) {
    const task = queue[0];
    const now = Date.now();
    if (!task || now - shownAt < TOO_SOON_MS) return;
    queue.shift();
    judged.add(task.assignment);
    const body = {
      client_token: token(), assignment: task.assignment, choice, shown_at: shownAt, decided_at: now,
      active_ms: active, wall_ms: now - shownAt, keys_used: byKey,
    };
    history.push({ task, token: body.client_token });
    if (history.length > 50) history.shift();
    last = SAID[choice];
    show();
    put("judge", body);
    tell();
  }

  function undo() {
    const before = history.pop();
    last = "Taken back";
    if (before) {
      judged.delete(before.task.assignment);
      queue.unshift(before.task);
      show();
    }
    put("undo", { client_token: token(), of: before ? before.token : null });
    tell();
  }

  // The screen
  function content(item) {
    const block = element("div", { dir: "auto", class: raw ? "text raw" : "text" });
    if (raw) block.textContent = item.text;
    else block.innerHTML = item.html; // inert: made by render.py
    if (!item.text.trim()) block.replaceChildren(element("em", { class: "nothing" }, "(empty)"));
    return block;
  }

  function show() {
    const task = queue[0] || null;
    if (task !== shown) {
      shown = task;
      shownAt = Date.now();
      active = 0;
      draw();
      for (const one of [page.prompt, page.left, page.right]) one.scrollTop = 0;
    }
    document.body.dataset.task = task ? task.assignment : "";
  }

  function draw() {
    page.judge.classList.toggle("empty", !shown);
    if (!shown) return;
    page.prompt.replaceChildren(
      ...shown.prompt.map((m) => element("div", { class: `turn ${m.role}` }, element("span", { class: "who" }, m.role), content(m))),
    );
    page.left.replaceChildren(content(shown.responses[0]));
    page.right.replaceChildren(content(shown.responses[1]));
  }

  function tell() {
    const waiting = outbox().length;
    const done = Math.min(progress.wanted, progress.done);
    page.count.textContent = `${done} of ${progress.wanted} judged · ${progress.mine} by you`;
    page.bar.max = progress.wanted || 1;
    page.bar.value = done;
    let text = last ? `${last} – saved` : "";
    if (waiting) text = problem ? `${waiting} waiting to be sent (${problem})` : `${last} – saving …`;
    else if (problem) text = problem;
    page.status.textContent = [text, ...refused].filter(Boolean).join(" · ");
    page.status.className = problem || refused.length ? "trouble" : "";
    page.again.hidden = problem !== "signed out";
    document.body.dataset.waiting = waiting;
    page.done.textContent = problem
      ? `Waiting for the next pair (${problem}).`
      : "Nothing is left for you: all pairs are judged, or with other people. Thank you!";
  }

  function build() {
    page.judge = byId("judge");
    page.count = element("span", { class: "count" });
    page.bar = element("progress", { "aria-label": "Progress of the round" });
    page.status = element("span", { role: "status", "aria-live": "polite", id: "status" });
    page.again = element("a", { href: "/login", hidden: "" }, "Sign in again");
    page.raw = element("button", { type: "button", id: "raw", "aria-pressed": "false" }, "Exact text");
    const out = element("form", { method: "post", action: "/logout" }, element("button", { type: "submit", title: "Sign out" }, `${user.name} · sign out`));
    page.prompt = element("section", { id: "prompt", "aria-label": "Conversation", tabindex: "0" });
    page.left = element("section", { "aria-label": "Response A", tabindex: "0" });
    page.right = element("section", { "aria-label": "Response B", tabindex: "0" });
    page.done = element("p", { id: "done" });
    page.judge.prepend(
      element("header", { id: "bar" }, element("h1", {}, "Which response is better?"), page.bar, page.count, page.raw, out),
      page.done,
      page.prompt,
      element("div", { id: "pair" },
        element("article", {}, element("h2", {}, "A"), page.left),
        element("article", {}, element("h2", {}, "B"), page.right)),
    );
    byId("choices").after(element("p", { id: "below" }, page.status, page.again));
    document.documentElement.classList.add("scripted");
    page.raw.addEventListener("click", exact);
  }

  function exact() {
    raw = !raw;
    page.raw.setAttribute("aria-pressed", raw);
    draw();
  }

  // Input
  function onClick(event) {
    const button = event.target instanceof Element && event.target.closest("button");
    if (!button || !(button.id in BUTTONS || button.id === "undo")) return;
    event.stopImmediatePropagation(); // Gradio's own event is for pages without this script
    event.preventDefault();
    if (button.id === "undo") undo();
    else decide(BUTTONS[button.id], event.detail === 0);
  }

  function onKey(event) {
    touched = Date.now();
    if (event.repeat || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target instanceof Element && event.target.closest("input, textarea, select, [contenteditable]")) return;
    const key = event.key.toLowerCase();
    if (key in KEYS) decide(KEYS[key], true);
    else if (key === "u" || key === "backspace") undo();
    else if (key === "x") exact();
    else if (key === "g") byId("guidelines")?.querySelector("button")?.click();
    else return;
    event.preventDefault();
  }

  function onOtherTab(event) {
    if (event.key !== boxName()) return;
    for (const { kind, body } of outbox()) {
      const at = kind === "judge" ? queue.findIndex((t) => t.assignment === body.assignment) : -1;
      if (at >= 0) {
        judged.add(body.assignment);
        queue.splice(at, 1);
      }
    }
    show();
    tell();
  }

  async function start() {
    try {
      const answer = await fetch("/api/v1/me");
      if (!answer.ok) throw new Error(answer.statusText);
      user = await answer.json();
    } catch {
      setTimeout(start, 2000); // without the script the buttons work meanwhile
      return;
    }
    build();
    window.addEventListener("click", onClick, true);
    window.addEventListener("keydown", onKey);
    window.addEventListener("storage", onOtherTab);
    window.addEventListener("pointermove", () => (touched = Date.now()), { passive: true });
    window.addEventListener("beforeunload", (event) => outbox().length && event.preventDefault());
    for (const { kind, body } of outbox()) if (kind === "judge") judged.add(body.assignment);
    await flush();
    await more();
    setInterval(() => {
      if (document.visibilityState === "visible" && Date.now() - touched < IDLE_MS) active += 250;
    }, 250);
    setInterval(() => (outbox().length ? flush() : null), 1000);
    setInterval(more, 5000);
    setInterval(refresh, 20000);
  }

  const waiting = setInterval(() => {
    if (!byId("pick-a")) return;
    clearInterval(waiting);
    start();
  }, 30);
})();
