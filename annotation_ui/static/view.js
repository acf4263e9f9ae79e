// The task on the screen: the conversation, the responses, what is asked about each, and the row of choices.
// It draws a Sheet and tells of every change; it sends nothing and knows no keys but those of its own controls.
import { LETTERS, button, element, has, t } from "./words.js";
import { choicesOf, isOneStep, takesMore } from "./sheet.js";

export class View {
  // actions: {changed()}: something was entered
  constructor(root, choices, actions) {
    this.root = root;
    this.choices = choices; // the row of Gradio's buttons
    this.actions = actions;
    this.raw = false;
    this.sheet = null;
    this.pending = false; // ranking: the next response is tied with the last
    this.notice = element("p", { id: "notice", hidden: true });
    this.prompt = element("section", { id: "prompt", tabindex: "0" });
    this.responses = element("div", { id: "responses" });
    this.extras = element("div", { id: "extras" });
    this.line = element("div", { id: "line", role: "group" });
    this.choices.prepend(this.line);
    for (const unused of choices.querySelectorAll(".unused")) unused.classList.remove("unused"); // hidden by label()
    root.append(this.notice, this.prompt, this.responses, this.extras);
    this.extraButtons = []; // choices for which the page has no button of its own
  }

  show(sheet) {
    this.sheet = sheet;
    this.pending = false;
    this.root.classList.toggle("empty", !sheet);
    if (!sheet) return this.label();
    const { task, form } = sheet;
    this.responses.className = form.kind === "pair" ? "pair" : "many";
    this.prompt.replaceChildren(...task.prompt.map((message) => this.#turn(message)));
    this.responses.replaceChildren(...task.responses.map((_, place) => this.#response(place)));
    this.extras.replaceChildren(...this.#flags(), ...this.#comment());
    this.#correction();
    this.label();
    this.mark();
    const several = task.prompt.filter((message) => message.role !== "system").length > 1;
    this.prompt.scrollTop = several ? this.prompt.scrollHeight : 0; // the last turn is what the responses answer
  }

  #content(item) {
    const block = element("div", { dir: "auto", class: this.raw ? "text raw" : "text" });
    if (this.raw) block.textContent = item.text;
    else block.innerHTML = item.html; // inert: made by render.py
    if (!item.text.trim()) block.replaceChildren(element("em", { class: "nothing" }, t("text.empty")));
    if (item.cut) block.append(element("p", { class: "nothing cut", dir: "auto" }, t("text.cut")));
    return block;
  }

  #turn(message) {
    const role = has(`role.${message.role}`) ? t(`role.${message.role}`) : message.role;
    return element("div", { class: `turn ${message.role}` }, element("span", { class: "who" }, role), this.#content(message));
  }

  #response(place) {
    const { form, task } = this.sheet;
    const letter = LETTERS[place];
    const key = form.kind === "ranking" ? String(place + 1) : null;
    const head = element("header", {}, element("h2", { id: `name-${place}`, "data-key": key }, letter));
    if (form.kind === "ranking") head.append(this.#badge(place));
    if (form.correction) head.append(button(`correct-${place}`, t("correct.start"), "E", () => this.correct(place), { class: "quiet" }));
    const text = element("section", { tabindex: "0", "aria-label": t("response.named", { letter }) }, this.#content(task.responses[place]));
    return element("article", { "aria-labelledby": `name-${place}` }, head, text, ...this.#questions(place));
  }

  #badge(place) {
    return button(`rank-${place}`, "", null, () => this.rank(place), { class: "rank", "aria-keyshortcuts": place + 1 });
  }

  // Questions about one response
  #questions(place) {
    const { form, rules, ratings } = this.sheet;
    const asked = [
      ...form.rules.map((rule, at) => ({
        id: `rule-${place}-${at}`, legend: rule,
        options: [[false, t("rule.kept")], [true, t("rule.broken")]],
        value: () => rules[place][rule], set: (value) => (rules[place][rule] = value),
      })),
      ...form.attributes.map((attribute, at) => ({
        id: `rating-${place}-${at}`, legend: attribute.name, low: attribute.low, high: attribute.high,
        options: Array.from({ length: attribute.points }, (_, points) => [points + 1, t("number", { n: points + 1 })]),
        value: () => ratings[place][attribute.name], set: (value) => (ratings[place][attribute.name] = value),
      })),
    ];
    if (!asked.length) return [];
    return [element("div", { class: "questions" }, ...asked.map((question) => this.#question(place, question)))];
  }

  #question(place, { id, legend, low, high, options, value, set }) {
    const choices = options.map(([option, label], at) => {
      const input = element("input", { type: "radio", name: id, value: at + 1, checked: value() === option });
      input.addEventListener("change", () => {
        set(option);
        group.classList.remove("wanted");
        this.actions.changed();
      });
      return element("label", { "data-key": low === undefined ? String(at + 1) : null }, input, element("span", {}, label));
    });
    const hidden = element("span", { class: "unseen" }, `${t("response.named", { letter: LETTERS[place] })}: `);
    const ends = (words) => (words ? [element("span", { class: "end", dir: "auto" }, words)] : []);
    const group = element("fieldset", { class: "question", id },
      element("legend", { dir: "auto" }, hidden, legend),
      element("div", { class: "scale" }, ...ends(low), ...choices, ...ends(high)));
    return group;
  }

  // The first question that has no answer yet gets the focus; false where there is none.
  goToQuestion(id) {
    const group = document.getElementById(id);
    if (!group) return false;
    group.querySelector("input").focus();
    group.scrollIntoView({ block: "nearest" });
    return true;
  }

  // Questions answered by digit: the one that has the focus.
  answerFocused(digit) {
    const group = document.activeElement?.closest?.("fieldset.question");
    const input = group?.querySelectorAll("input")[digit - 1];
    if (!input) return false;
    if (!input.checked) input.click();
    return true;
  }

  // What is asked about the task as a whole
  #flags() {
    const { form, flags } = this.sheet;
    if (!form.flags.length) return [];
    const boxes = form.flags.map((flag) => {
      const input = element("input", { type: "checkbox", checked: flags.has(flag) });
      input.addEventListener("change", () => {
        if (input.checked) flags.add(flag);
        else flags.delete(flag);
        this.actions.changed();
      });
      return element("label", { dir: "auto" }, input, element("span", {}, flag));
    });
    return [element("fieldset", { id: "flags" }, element("legend", { "data-key": "F" }, t("flag.legend")), ...boxes)];
  }

  #comment() {
    if (!this.sheet.form.comment) return [];
    const input = element("textarea", { id: "comment", rows: "2", dir: "auto", maxlength: "5000" });
    input.value = this.sheet.comment;
    input.addEventListener("input", () => {
      this.sheet.comment = input.value;
      this.actions.changed();
    });
    return [element("div", { class: "field" }, element("label", { for: "comment", "data-key": "C" }, t(isOneStep(this.sheet.form) ? "comment.before" : "comment.label")), input)];
  }

  #correction() {
    document.getElementById("correcting")?.remove();
    const kept = this.sheet.correction;
    if (!kept) return;
    const input = element("textarea", { id: "correction", rows: "8", dir: "auto", maxlength: "20000" });
    input.value = kept.text;
    input.addEventListener("input", () => {
      kept.text = input.value;
      this.actions.changed();
    });
    const drop = button("uncorrect", t("correct.drop"), null, () => this.correct(null), { class: "quiet" });
    this.extras.prepend(element("div", { class: "field", id: "correcting" },
      element("label", { for: "correction" }, t("correct.label", { letter: LETTERS[kept.place] })), input, drop));
  }

  // Begin to correct a response (or go on with it); null drops the correction.
  correct(place) {
    const { sheet } = this;
    if (place === null) sheet.correction = null;
    else if (sheet.correction?.place !== place) sheet.correction = { place, text: sheet.task.responses[place].original };
    this.#correction();
    document.getElementById(place === null ? "prompt" : "correction").focus();
    this.actions.changed();
  }

  // Ranking
  rank(place) {
    this.sheet.rank(place, this.pending);
    this.pending = false;
    this.actions.changed();
  }

  tie() {
    this.pending = !this.pending && this.sheet.groups.length > 0;
    this.mark();
  }

  #drawLine() {
    const { sheet } = this;
    this.line.hidden = sheet.form.kind !== "ranking";
    if (this.line.hidden) return;
    this.line.setAttribute("aria-label", t("ranking.line"));
    const line = sheet.line();
    const parts = line.flatMap(({ place, tied }, at) => [...(at ? [this.#sign(at, tied)] : []), this.#chip(place, at)]);
    const full = line.length === sheet.places.length;
    if (!full && sheet.form.tie && line.length) {
      const about = { class: "sign", "aria-pressed": this.pending, "aria-label": t("ranking.tie_next") };
      parts.push(button("tie-next", this.pending ? "=" : ">", "=", () => this.tie(), about));
    }
    const hint = line.length ? "" : t("ranking.hint");
    this.line.replaceChildren(element("span", { class: "end" }, t("ranking.best")), ...parts,
      ...(full ? [] : [element("span", { class: "slot" }, hint || "…")]), ...(full ? [element("span", { class: "end" }, t("ranking.worst"))] : []));
  }

  #sign(at, tied) {
    const sign = tied ? "=" : ">";
    if (!this.sheet.form.tie) return element("span", { class: "sign" }, sign);
    const made = button(`sign-${at}`, sign, null, () => {
      this.sheet.toggleTie(at);
      this.actions.changed();
      document.getElementById(`sign-${at}`)?.focus();
    }, { class: tied ? "sign even" : "sign", "aria-label": t(tied ? "ranking.untie" : "ranking.tie") });
    return made;
  }

  // A response in the line: dragged onto another's place, moved by the arrow keys, taken out by a click.
  #chip(place, at) {
    const move = (to) => {
      this.sheet.move(place, to);
      this.actions.changed();
      document.getElementById(`chip-${place}`)?.focus();
    };
    const label = t("ranking.chip", { letter: LETTERS[place], rank: this.sheet.rankOf(place) });
    let dragged = false; // the click that ends a drag is none
    const chip = button(`chip-${place}`, LETTERS[place], null, () => dragged || this.rank(place), { class: "chip", "aria-label": label });
    chip.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      move(at + (document.documentElement.dir === "rtl" ? -step : step));
    });
    // Pointer events, for mouse, pen and finger: the browser's own dragging knows no touch.
    chip.addEventListener("pointerdown", (down) => {
      if (down.button) return;
      chip.setPointerCapture(down.pointerId);
      const drag = ({ clientX, clientY }) => {
        const [x, y] = [clientX - down.clientX, clientY - down.clientY];
        if (!dragged && Math.hypot(x, y) < 6) return;
        dragged = true;
        chip.classList.add("dragged"); // what is under it can be seen by elementFromPoint()
        chip.style.translate = `${x}px ${y}px`;
      };
      const drop = ({ type, clientX, clientY }) => {
        chip.removeEventListener("pointermove", drag);
        for (const end of ["pointerup", "pointercancel"]) chip.removeEventListener(end, drop);
        const under = type === "pointerup" && document.elementFromPoint(clientX, clientY)?.closest("#line .chip");
        const to = [...this.line.querySelectorAll(".chip")].indexOf(under);
        chip.classList.remove("dragged");
        chip.style.translate = "";
        if (dragged && to >= 0) move(to);
        setTimeout(() => (dragged = false));
      };
      chip.addEventListener("pointermove", drag);
      for (const end of ["pointerup", "pointercancel"]) chip.addEventListener(end, drop);
    });
    return chip;
  }

  // The row of choices
  label() {
    const options = this.sheet ? choicesOf(this.sheet.form) : [];
    for (const extra of this.extraButtons) extra.remove();
    for (const known of this.choices.querySelectorAll("button[id^='pick-']")) known.hidden = true;
    options.forEach((option, at) => {
      let made = document.getElementById(option.id);
      if (!made) {
        made = element("button", { type: "button", id: option.id });
        this.choices.append(made);
        this.extraButtons.push(made);
      }
      const key = this.sheet.form.kind === "ranking" ? "N" : String(at + 1);
      this.#set(made, option.label, key);
      made.style.order = at + 1;
    });
    this.choices.dataset.options = options.length;
    this.#set(document.getElementById("submit"), t("choose.submit"), "Enter");
    this.#set(document.getElementById("skip"), t("choose.skip"), "S");
    this.#set(document.getElementById("undo"), t("choose.undo"), "U");
    document.getElementById("skip").hidden = !this.sheet;
    this.prompt.setAttribute("aria-label", t("conversation"));
  }

  #set(made, label, key) {
    made.hidden = false;
    made.textContent = label;
    made.dataset.key = key === "Enter" ? "↵" : key;
    made.setAttribute("aria-keyshortcuts", key);
  }

  optionOf(id) {
    return this.sheet ? choicesOf(this.sheet.form).find((option) => option.id === id) : undefined;
  }

  // What stands on the sheet, marked on the page.
  mark() {
    const { sheet } = this;
    if (!sheet) return;
    const oneStep = isOneStep(sheet.form);
    for (const option of choicesOf(sheet.form)) {
      const made = document.getElementById(option.id);
      if (oneStep && !sheet.choice) made.removeAttribute("aria-pressed");
      else made.setAttribute("aria-pressed", sheet.isChosen(option));
    }
    this.responses.querySelectorAll("article").forEach((article, place) => {
      article.classList.toggle("chosen", sheet.choice?.place === place);
      const badge = article.querySelector(".rank");
      if (!badge) return;
      const rank = sheet.rankOf(place);
      badge.textContent = rank === null ? t("ranking.place") : t("ranking.rank", { rank });
      badge.setAttribute("aria-pressed", rank !== null);
      badge.setAttribute("aria-label", `${t("response.named", { letter: LETTERS[place] })}: ${badge.textContent}`);
      article.classList.toggle("ranked", rank !== null);
    });
    this.#drawLine();
    const submit = document.getElementById("submit");
    submit.classList.toggle("ready", !sheet.missing().length);
    submit.hidden = oneStep && !(sheet.choice && takesMore(sheet.form)); // chosen before: taken back, or being changed
  }

  exact() {
    this.raw = !this.raw;
    if (!this.sheet) return;
    const { task } = this.sheet;
    this.prompt.querySelectorAll(".text").forEach((text, at) => text.replaceWith(this.#content(task.prompt[at])));
    this.responses.querySelectorAll("section > .text").forEach((text, place) => text.replaceWith(this.#content(task.responses[place])));
  }
}
