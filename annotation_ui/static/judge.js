// Judging: shows the next task at once, answers keys, and keeps every judgement in the browser until the server has
// confirmed it. Without this script the page's own buttons do the same by Gradio's events.
import { button, element, speak, speaking, t, time } from "./words.js";
import { Outbox, post, postOnLeaving, recall, remember, token } from "./outbox.js";
import { Sheet, choicesOf, isOneStep, savedOf, summary, takesMore } from "./sheet.js";
import { View } from "./view.js";
import { Drawer, Help, Result, colours, keepLanguage, menu } from "./panels.js";

const TOO_SOON_MS = 250; // nobody judges this fast: the second press of a double press
const IDLE_MS = 60000; // time without a touch of mouse or keys does not count as active
const TAB_MS = 90000; // a tab that has not been heard of for so long is closed (hidden tabs run once a minute)
const queue = []; // tasks in hand; the first is on the screen
const history = []; // what can be undone on this page: {task, token, content}
const judged = new Set(); // assignments answered here or in another tab
const refused = []; // what the server would not take, shown until the page is loaded again
const page = {}; // the elements
let user = null, outbox = null, view = null, drawer = null, help = null, result = null;
let progress = null; // the server's {mine, done, wanted, guidelines}; null until it has told
let sheet = null, revising = null; // revising: a past judgement that is being changed
let shownAt = 0, active = 0, touched = Date.now(), saving = 0;
let said = "", complaint = ""; // the last answer in words; what is missing of this one
const tab = token();

const byId = (id) => document.getElementById(id);
const named = (what) => `rlhf-${what}-${user.id}`;

// Drafts: at once in this browser, a moment later on the server, for other browsers

const draftName = (assignment) => `${named("draft")}-${assignment}`;

function draftOf(task) {
  const [here, there] = [recall(draftName(task.assignment)), task.draft];
  return (here?.at ?? 0) >= (there?.at ?? 0) ? here?.content : there.content;
}

function saveDraft() {
  if (!sheet || revising) return;
  const content = sheet.content();
  const { assignment } = sheet.task;
  const draft = content && { at: Date.now(), content };
  remember(draftName(assignment), draft);
  clearTimeout(saving);
  saving = setTimeout(() => post("/api/v1/drafts", { assignment, draft }).catch(() => null), 800);
}

// Tasks

function take(data) {
  if (data.progress) progress = data.progress;
  drawer.hearVersion(progress?.guidelines ?? null);
  for (const task of data.tasks || []) {
    if (!judged.has(task.assignment) && !queue.some((one) => one.assignment === task.assignment)) queue.push(task);
  }
  show();
}

function putAway(assignment) {
  judged.add(assignment);
  const at = queue.findIndex((task) => task.assignment === assignment);
  if (at >= 0) queue.splice(at, 1);
}

function takeBack(task, content = null) {
  judged.delete(task.assignment);
  if (content) remember(draftName(task.assignment), { at: Date.now(), content });
  if (!queue.some((one) => one.assignment === task.assignment)) queue.unshift(task);
  show();
}

function onAnswer({ kind, body, said: answer, taken }, data, wasRefused) {
  if (wasRefused) {
    if (taken) putAway(taken); // it stays as it was judged
    show();
    refused.push(t(kind === "undo" ? "said.undo_refused" : "said.refused", { answer, why: data.error }));
    return;
  }
  take(data);
  if (kind === "undo" && body.of === null && data.task) takeBack(data.task);
  if (data.feedback) result.show(data.feedback, data.feedback.form);
  if (drawer.open === "history") drawer.fill();
}

async function more() {
  if (queue.length || outbox.items().length) return;
  try {
    const answer = await post("/api/v1/tasks/next", {});
    if (outbox.hear(answer) && answer.ok) take(await answer.json());
  } catch (error) {
    outbox.lose(error);
  }
  tell();
}

async function refresh() {
  const answer = await fetch("/api/v1/progress").catch(() => null);
  const told = answer?.ok && (await answer.json().catch(() => null));
  if (!told || outbox.items().length) return;
  take({ progress: told });
  tell();
}

// Deciding

function choose(option, byKey) {
  if (isOneStep(sheet.form)) {
    sheet.choose(option);
    return decide(byKey);
  }
  sheet.choose(option);
  changed();
  if (byKey) goOn();
}

// To the first question without an answer, or to the button that submits.
function goOn() {
  const [first] = sheet.missing();
  if (!first) byId("submit").focus();
  else if (!first.question || !view.goToQuestion(first.question)) document.activeElement?.blur();
}

// Not where every answer is one press, and nothing can be added to it.
const mayBeSubmitted = () => Boolean(sheet) && (!isOneStep(sheet.form) || takesMore(sheet.form));

function submit(byKey) {
  const missing = sheet.missing();
  if (!missing.length) return decide(byKey);
  complaint = t("missing.all", { list: missing.slice(0, 3).map((one) => one.text).join(" · ") + (missing.length > 3 ? " …" : "") });
  if (missing[0].question) byId(missing[0].question)?.classList.add("wanted");
  goOn();
  tell();
}

function decide(byKey, skip = false) {
  const now = Date.now();
  if (!sheet || now - shownAt < TOO_SOON_MS) return;
  const { task } = sheet;
  const answer = sheet.answer(skip);
  said = summary(answer, sheet.form);
  const body = {
    client_token: token(), assignment: task.assignment, ...answer, shown_at: shownAt, decided_at: now,
    active_ms: active, wall_ms: now - shownAt, keys_used: byKey,
  };
  if (!revising) {
    history.push({ task, token: body.client_token, content: isOneStep(sheet.form) && !takesMore(sheet.form) ? null : sheet.content() });
    if (history.length > 50) history.shift();
  }
  clearTimeout(saving);
  remember(draftName(task.assignment), null);
  putAway(task.assignment);
  revising = null;
  show();
  outbox.put("judge", body, { said });
  tell();
}

function undo() {
  if (revising) return leaveRevision();
  const before = history.pop();
  said = t("said.taken_back");
  if (before) takeBack(before.task, before.content);
  outbox.put("undo", { client_token: token(), of: before ? before.token : null }, { taken: before?.task.assignment });
  tell();
}

function revise(item) {
  revising = item;
  if (innerWidth < 1100) drawer.toggle("");
  show();
  tell();
  view.prompt.focus();
}

function leaveRevision() {
  revising = null;
  show();
  tell();
}

// The screen

function changed() {
  view.mark();
  saveDraft();
  if (complaint) {
    complaint = "";
    tell();
  }
}

function show() {
  const task = revising ? revising.task : queue[0] || null;
  if (task !== (sheet?.task ?? null)) {
    const inside = page.judge.contains(document.activeElement) && document.activeElement.closest("#responses, #extras, #line");
    sheet = task && new Sheet(task, revising ? savedOf(task, revising.answer) : draftOf(task));
    shownAt = Date.now();
    active = 0;
    complaint = "";
    view.show(sheet);
    scrollTo(0, 0);
    view.responses.querySelectorAll("section").forEach((one) => (one.scrollTop = 0));
    if (inside && sheet) view.prompt.focus({ preventScroll: true });
  }
  const asks = sheet?.form.kind === "ranking" ? "title.ranking" : "title.pair";
  page.title.textContent = t(sheet ? asks : "title.page");
  view.notice.hidden = !(revising || sheet?.task.practice);
  view.notice.textContent = revising ? t("notice.revising", { time: time(revising.at) }) : t("notice.practice");
  document.body.dataset.task = task ? task.assignment : "";
  document.body.dataset.revising = Boolean(revising);
}

// What was done here counts at once: the server's numbers, and what waits to be sent to it.
function counts() {
  const waiting = outbox.items();
  const fresh = waiting.reduce((sum, { kind, body }) => sum + (kind === "undo" ? (body.of ? -1 : 0) : 1), 0);
  const { done, wanted, mine } = progress ?? { done: 0, wanted: 0, mine: 0 };
  const within = Math.max(0, Math.min(wanted, done + fresh));
  return { done: within, wanted, mine: Math.max(0, mine + fresh), waiting: waiting.length };
}

function tell() {
  const { done, wanted, mine, waiting } = counts();
  const { problem } = outbox;
  const why = problem && t(`problem.${problem.replace(" ", "_")}`);
  page.count.textContent = progress ? t("progress.counts", { done, wanted, mine }) : "";
  page.bar.max = wanted || 1;
  page.bar.value = done;
  let text = "";
  if (complaint) text = complaint;
  else if (waiting) text = problem ? t("status.waiting", { n: waiting, why }) : t("status.saving", { said });
  else if (problem) text = why;
  else if (said) text = t("status.saved", { said });
  page.status.textContent = [text, ...refused].filter(Boolean).join(" · ");
  page.status.className = problem || refused.length || complaint ? "trouble" : "";
  page.again.hidden = problem !== "signed out";
  document.body.dataset.waiting = waiting;
  if (progress) page.done.textContent = problem ? t("done.waiting", { why }) : t("done.all");
  else page.done.textContent = problem ? t("done.unloaded") : "";
}

function build() {
  page.judge = byId("judge");
  page.title = element("h1");
  page.count = element("span", { class: "count" });
  page.bar = element("progress", {});
  page.status = element("span", { role: "status", "aria-live": "polite", id: "status" });
  page.again = element("a", { href: "/login", hidden: true });
  page.done = element("p", { id: "done" });
  page.header = element("header", { id: "bar" });
  page.main = element("div", { id: "screen" }, page.header, page.done);
  page.judge.prepend(page.main);
  view = new View(page.main, byId("choices"), { changed });
  drawer = new Drawer(revise);
  help = new Help();
  result = new Result(() => (shownAt = Date.now(), active = 0));
  byId("choices").append(element("p", { id: "below" }, page.status, page.again));
  document.documentElement.classList.add("scripted");
  label();
  view.show(null);
  show();
}

// Everything that has words and is not of the task.
function label() {
  document.title = t("title.page");
  page.bar.setAttribute("aria-label", t("progress.label"));
  page.again.textContent = t("problem.again");
  byId("choices").setAttribute("role", "group");
  byId("choices").setAttribute("aria-label", t("choose.label"));
  page.header.replaceChildren(
    page.title, page.bar, page.count,
    button("open-guidelines", t("drawer.guidelines"), "G", () => drawer.toggle("guidelines"), { "aria-expanded": "false" }),
    button("open-history", t("drawer.history"), "H", () => drawer.toggle("history"), { "aria-expanded": "false" }),
    button("raw", t("text.exact"), "X", exact, { "aria-pressed": view.raw }),
    button("open-help", t("help.open"), "?", () => help.toggle(sheet?.form)),
    menu(user, changeLanguage),
  );
}

// stays: the menu is left open
async function changeLanguage(wanted, stays) {
  try {
    await speak(wanted);
  } catch {
    return; // the network is away: the page keeps its language
  }
  keepLanguage(wanted);
  const open = drawer.open;
  said = "";
  label();
  view.show(sheet);
  show();
  tell();
  if (open) drawer.fill();
  byId("menu").open = stays;
  if (stays) byId("language").focus();
  else if (sheet) view.prompt.focus({ preventScroll: true });
}

function exact() {
  view.exact();
  byId("raw").setAttribute("aria-pressed", view.raw);
}

// Input

// The Latin letter or digit of a key, whatever the keyboard's layout: ش and ф are A, ۱ is 1.
function keyOf(event) {
  if (event.key === "؟") return "?";
  if (event.key.length > 1 || /^[a-z0-9?=]$/i.test(event.key)) return event.key.toLowerCase();
  const found = event.shiftKey ? null : /^(?:Key([A-Z])|(?:Digit|Numpad)(\d))$/.exec(event.code);
  return found ? (found[1] || found[2]).toLowerCase() : event.key;
}

function onClick(event) {
  const clicked = event.target instanceof Element && event.target.closest("#choices button");
  const menuOpen = byId("menu");
  if (menuOpen?.open && !menuOpen.contains(event.target)) menuOpen.open = false;
  if (!clicked) return;
  const option = view.optionOf(clicked.id);
  if (!option && !["submit", "skip", "undo"].includes(clicked.id)) return;
  event.stopImmediatePropagation(); // Gradio's own event is for pages without this script
  event.preventDefault();
  const byKey = event.detail === 0;
  if (clicked.id === "undo") undo();
  else if (!sheet) return;
  else if (clicked.id === "skip") decide(byKey, true);
  else if (clicked.id === "submit") submit(byKey);
  else choose(option, byKey);
}

function onKey(event) {
  touched = Date.now();
  if (event.repeat || event.isComposing || document.querySelector("dialog[open]")) return;
  const key = keyOf(event);
  const target = event.target instanceof Element ? event.target : document.body;
  if (key === "enter" && (event.ctrlKey || event.metaKey) && mayBeSubmitted()) {
    event.preventDefault();
    return submit(true);
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === "escape") return onEscape(target);
  if (target.closest("#menu[open], textarea, select, input:not([type=radio]):not([type=checkbox]), [contenteditable]")) return;
  if (pressed(key, target)) event.preventDefault();
}

function onEscape(target) {
  if (byId("menu").open) byId("menu").open = false;
  else if (target.closest("textarea, input")) target.blur();
  else if (drawer.open) drawer.toggle("");
  else if (revising) leaveRevision();
}

// One key outside of any field; true where it meant something.
function pressed(key, target) {
  if (key === "?") return help.toggle(sheet?.form), true;
  if (key === "g") return drawer.toggle("guidelines"), true;
  if (key === "h") return drawer.toggle("history"), true;
  if (key === "x") return exact(), true;
  if (key === "backspace" && sheet?.groups.length) return sheet.unrankLast(), changed(), true;
  if (key === "u" || key === "backspace") return undo(), true;
  if (!sheet) return false;
  if (key === "enter") return !target.closest("button, a, summary") && mayBeSubmitted() && (submit(true), true);
  if (key === "s") return decide(true, true), true;
  if (key === "c" && byId("comment")) return byId("comment").focus(), true;
  if (key === "f" && byId("flags")) return byId("flags").querySelector("input").focus(), true;
  if (key === "e" && sheet.form.correction) return view.correct(sheet.correction?.place ?? sheet.choice?.place ?? sheet.groups[0]?.[0] ?? 0), true;
  if (/^[1-9]$/.test(key)) return onDigit(Number(key)), true;
  return onLetter(key);
}

function onDigit(digit) {
  if (view.answerFocused(digit)) return goOn();
  if (sheet.form.kind === "ranking") {
    if (digit > sheet.places.length) return;
    view.rank(digit - 1);
    if (sheet.places.every((place) => sheet.rankOf(place) !== null)) goOn();
    return;
  }
  const option = choicesOf(sheet.form)[digit - 1];
  if (option) choose(option, true);
}

function onLetter(key) {
  if (key === "=" || (key === "t" && sheet.form.kind === "ranking")) return sheet.form.kind === "ranking" && sheet.form.tie && (view.tie(), true);
  const letters = { a: "pick-a", b: "pick-b", t: "pick-tie", n: "pick-bad" };
  const option = view.optionOf(letters[key]);
  if (option) choose(option, true);
  return Boolean(option);
}

// Other tabs, leases

function onOtherTab(event) {
  if (event.key !== outbox.name) return;
  for (const { kind, body } of outbox.items()) if (kind === "judge") putAway(body.assignment);
  show();
  tell();
}

function otherTabs(entry) {
  const tabs = recall(named("tabs")) ?? {};
  for (const [name, at] of Object.entries(tabs)) if (name === tab || Date.now() - at > TAB_MS) delete tabs[name];
  remember(named("tabs"), { ...tabs, ...entry });
  return Object.keys(tabs).length;
}

function renew() {
  otherTabs({ [tab]: Date.now() });
  if (document.visibilityState !== "visible" || !queue.length) return;
  post("/api/v1/leases/renew", { assignments: queue.map((task) => task.assignment) }).catch(() => null);
}

// Tasks that nobody looks at any more go to others at once, but for those that were begun.
function onLeaving() {
  if (otherTabs({}) || !queue.length) return;
  const untouched = queue.map((task) => task.assignment).filter((id) => !recall(draftName(id)));
  if (untouched.length) postOnLeaving("/api/v1/leases/release", { assignments: untouched });
}

async function start() {
  try {
    const answer = await fetch("/api/v1/me");
    if (!answer.ok) throw new Error(answer.statusText);
    user = await answer.json();
    await speak(speaking() in user.languages ? speaking() : "en");
  } catch {
    setTimeout(start, 2000); // without the script the buttons work meanwhile
    return;
  }
  outbox = new Outbox(user.id, onAnswer, tell);
  colours();
  build();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => colours());
  window.addEventListener("click", onClick, true);
  window.addEventListener("keydown", onKey);
  window.addEventListener("storage", onOtherTab);
  window.addEventListener("pointermove", () => (touched = Date.now()), { passive: true });
  window.addEventListener("beforeunload", (event) => outbox.items().length && event.preventDefault());
  window.addEventListener("pagehide", onLeaving);
  window.addEventListener("pageshow", (event) => event.persisted && location.reload()); // its tasks were released
  for (const { kind, body } of outbox.items()) if (kind === "judge") judged.add(body.assignment);
  await outbox.flush();
  await more();
  renew();
  setInterval(() => {
    if (document.visibilityState === "visible" && Date.now() - touched < IDLE_MS && !document.querySelector("dialog[open]")) active += 250;
  }, 250);
  setInterval(() => (outbox.items().length ? outbox.flush() : null), 1000);
  setInterval(more, 5000);
  setInterval(refresh, 20000);
  setInterval(renew, 60000);
}

const waiting = setInterval(() => {
  if (!byId("pick-a")) return;
  clearInterval(waiting);
  start();
}, 30);
