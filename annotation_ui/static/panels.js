// What stands beside the task: guidelines and one's own past judgements in a drawer, the keys and a result in dialogs,
// the menu with language, colours and signing out.
import { LETTERS, button, element, speaking, t, time } from "./words.js";
import { post, recall, remember } from "./outbox.js";
import { isOneStep, short, summary, takesMore } from "./sheet.js";

const WITHOUT_CHOICES = ["X", "G", "H", "?", "Esc"];

export class Drawer {
  // revise(item): take a past judgement back onto the screen
  constructor(revise) {
    this.revise = revise;
    this.open = ""; // "", "guidelines" or "history"
    this.version = null; // of the guidelines that were read
    this.newest = null;
    this.title = element("h2", { id: "drawer-title" });
    this.body = element("div", { class: "body", tabindex: "0", role: "region", "aria-labelledby": "drawer-title" });
    this.close = button("drawer-close", "", "Esc", () => this.toggle(""), { class: "quiet" });
    const head = element("header", {}, this.title, this.close);
    this.root = element("aside", { id: "drawer", hidden: true, "aria-labelledby": "drawer-title" }, head, this.body);
    document.body.append(this.root);
  }

  toggle(name) {
    const focused = this.root.contains(document.activeElement);
    const before = this.open;
    this.open = this.open === name ? "" : name;
    this.root.hidden = !this.open;
    document.documentElement.classList.toggle("with-drawer", Boolean(this.open));
    for (const kind of ["guidelines", "history"]) document.getElementById(`open-${kind}`)?.setAttribute("aria-expanded", this.open === kind);
    if (this.open) {
      this.fill();
      this.body.focus();
    } else if (focused || name === "") document.getElementById(`open-${before}`)?.focus({ focusVisible: true });
  }

  async fill() {
    this.root.dataset.kind = this.open;
    this.title.textContent = t(`drawer.${this.open}`);
    this.close.textContent = t("drawer.close");
    try {
      await (this.open === "guidelines" ? this.#guidelines() : this.#history());
    } catch {
      this.body.replaceChildren(element("p", { class: "nothing" }, t("drawer.failed")));
    }
  }

  // Told with every answer of the server which version is the newest.
  hearVersion(version) {
    this.newest = version;
    if (this.version === null) this.version = version;
    if (this.open === "guidelines" && this.version !== version) this.fill();
    document.getElementById("open-guidelines")?.classList.toggle("new", this.version !== version);
  }

  async #guidelines() {
    const answer = await fetch("/api/v1/guidelines");
    if (!answer.ok) throw new Error(answer.statusText);
    const { html, version } = await answer.json();
    const text = element("div", { class: "text", dir: "auto" });
    text.innerHTML = html; // inert: made by render.py
    this.version = version;
    this.hearVersion(version);
    this.body.replaceChildren(html ? text : element("p", { class: "nothing" }, t("drawer.no_guidelines")));
  }

  async #history(before = null) {
    const answer = await fetch(`/api/v1/history?limit=20${before === null ? "" : `&before=${before}`}`);
    if (!answer.ok) throw new Error(answer.statusText);
    const { items } = await answer.json();
    const cards = items.map((item) => this.#card(item));
    if (before === null) this.body.replaceChildren(...(cards.length ? cards : [element("p", { class: "nothing" }, t("history.none"))]));
    else this.body.append(...cards);
    if (items.length < 20) return;
    const more = button("history-more", t("history.more"), null, () => {
      more.remove();
      this.#history(items.at(-1).judgement).catch(() => this.body.append(more));
    });
    this.body.append(more);
  }

  // A task's responses as they were ranked, or as they stood; best: preferred to others.
  #inOrder({ task, answer }) {
    const placed = task.responses.map((response, place) => ({ response, place, letter: LETTERS[place], best: answer.place === place }));
    if (!answer.ranking) return placed;
    return answer.ranking.flatMap((group, at) => group.map((place) => ({ ...placed[place], best: at === 0 })));
  }

  #card(item) {
    const begins = ({ text }, most) => short(text.trim().replace(/\s+/g, " "), most) || t("text.empty");
    const answers = this.#inOrder(item).map(({ response, letter, best }) =>
      element("li", { class: best ? "best" : null }, element("b", {}, letter), element("span", { dir: "auto" }, begins(response, 200))));
    const said = [summary(item.answer, item.task.form), ...item.answer.flags, item.answer.comment && `“${item.answer.comment}”`];
    const change = item.editable
      ? button(`revise-${item.task.assignment}`, t("history.change"), null, () => this.revise(item))
      : element("span", { class: "nothing" }, t("history.closed"));
    return element("article", { class: "past" },
      element("p", { class: "asked", dir: "auto" }, begins(item.task.prompt.at(-1), 160)),
      element("ul", {}, ...answers),
      element("p", { class: "said" }, said.filter(Boolean).join(" · ")),
      element("footer", {}, element("time", { datetime: new Date(item.at).toISOString() }, time(item.at)), change));
  }
}

function dialog(id) {
  const made = element("dialog", { id, "aria-labelledby": `${id}-title` });
  made.addEventListener("click", (event) => event.target === made && made.close());
  document.body.append(made);
  return made;
}

function closing(made) {
  return button(`${made.id}-close`, t("dialog.close"), "Enter", () => made.close(), { autofocus: true, class: "strong" });
}

// The keys that do something for this form.
export class Help {
  constructor() {
    this.root = dialog("help");
  }

  toggle(form) {
    if (this.root.open) return void this.root.close();
    const rows = form ? this.#ofForm(form) : [];
    for (const key of [...(form ? ["S", "U"] : ["U"]), ...WITHOUT_CHOICES]) rows.push([[key], t(`help.${key === "?" ? "help" : key.toLowerCase()}`)]);
    const list = rows.map(([keys, words]) => {
      const caps = keys.map((key) => element("kbd", {}, key));
      return element("div", {}, element("dt", {}, ...caps), element("dd", {}, words));
    });
    const title = element("h2", { id: "help-title" }, t("help.title"));
    this.root.replaceChildren(title, element("dl", {}, ...list), element("p", {}, t("help.kept")), closing(this.root));
    this.root.showModal();
  }

  #ofForm(form) {
    const rows = [];
    if (form.kind === "ranking") {
      rows.push([["1", "–", "9"], t("help.rank")]);
      if (form.tie) rows.push([["="], t("help.tie_next")]);
      rows.push([["⌫"], t("help.unrank")], [["←", "→"], t("help.move")]);
      if (form.all_bad) rows.push([["N"], t("choose.all_bad")]);
    } else {
      const count = (form.strength ? 6 : 2) + form.tie + form.all_bad;
      rows.push([["1", "–", String(count)], t(form.strength ? "help.scale" : "help.choose")]);
      if (!form.strength) rows.push([["A", "B"], t("help.sides")]);
      if (form.tie) rows.push([["T"], t("choose.tie")]);
      if (form.all_bad) rows.push([["N"], t("choose.both_bad")]);
    }
    if (form.rules.length || form.attributes.length) rows.push([["1", "–", "9"], t("help.question")], [["Tab"], t("help.tab")]);
    if (form.correction) rows.push([["E"], t("help.e")]);
    if (form.comment) rows.push([["C"], t("help.c")]);
    if (form.flags.length) rows.push([["F"], t("help.f")]);
    if (!isOneStep(form)) rows.push([["Enter"], t("help.enter")]);
    if (!isOneStep(form) || takesMore(form)) rows.push([["Ctrl", "Enter"], t("help.ctrl_enter")]);
    return rows;
  }
}

// After a task whose answer is known: was it right, and why.
export class Result {
  constructor(onClose) {
    this.root = dialog("result");
    this.root.addEventListener("close", onClose);
  }

  show({ right, expected, html }, form) {
    const why = element("div", { class: "text", dir: "auto" });
    why.innerHTML = html; // inert: made by render.py
    this.root.className = right ? "right" : "wrong";
    this.root.replaceChildren(
      element("h2", { id: "result-title" }, t(right ? "result.right" : "result.wrong")),
      element("p", {}, t("result.expected", { answer: summary(expected, form) })), why, closing(this.root));
    if (!this.root.open) this.root.showModal();
  }
}

const CHOSEN = "rlhf-colours"; // "light" or "dark"; without it the system's

export function colours(chosen = recall(CHOSEN) ?? "") {
  remember(CHOSEN, chosen || null);
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.colours = chosen;
  document.body.classList.toggle("dark", dark); // Gradio's own
}

// onLanguage(language, stays): everything has to be said again; stays: the arrow keys went on in a list that is not
// open, and may have further to go.
export function menu(user, onLanguage) {
  const select = (id, label, options, value, change) => {
    const choices = Object.entries(options).map(([key, name]) => element("option", { value: key, selected: key === value }, name));
    const made = element("select", { id }, ...choices);
    made.addEventListener("change", () => change(made.value));
    return element("label", {}, element("span", {}, label), made);
  };
  let stepping = false;
  const language = select("language", t("menu.language"), user.languages, speaking(), (wanted) => onLanguage(wanted, stepping));
  language.addEventListener("keydown", ({ key, altKey }) => (stepping = key.startsWith("Arrow") && !altKey));
  language.addEventListener("pointerdown", () => (stepping = false));
  const shades = { "": t("menu.colours_system"), light: t("menu.colours_light"), dark: t("menu.colours_dark") };
  const colour = select("colours", t("menu.colours"), shades, document.documentElement.dataset.colours, colours);
  const links = [];
  if (user.admin) links.push(element("a", { href: "/admin/" }, t("menu.admin")));
  if (user.accounts) links.push(element("a", { href: "/password" }, t("menu.password")));
  const out = element("form", { method: "post", action: "/logout" }, element("button", { type: "submit", id: "sign-out" }, t("menu.sign_out")));
  const name = element("summary", {}, element("span", { dir: "auto" }, user.name));
  return element("details", { id: "menu" }, name, element("div", {}, language, colour, ...links, out));
}

// Remember the language: in this browser at once, on the server for this person's others.
export function keepLanguage(locale) {
  document.cookie = `rlhf_language=${locale}; path=/; max-age=31536000; samesite=lax`;
  post("/api/v1/locale", { locale }).catch(() => null);
}
