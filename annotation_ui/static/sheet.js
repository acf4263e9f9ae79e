// One task's answer while it is being given: what was chosen, what is missing, what is sent. No element of the page.
import { LETTERS, t } from "./words.js";

// The choices of a pair in the order of their keys, from the first response's side to the second's.
export function choicesOf(form) {
  const better = (place, strength) => ({
    id: `pick-${place ? "b" : "a"}${strength || ""}`, choice: "response", place, strength,
    label: t(strength ? `choose.strength${strength}` : "choose.better", { letter: LETTERS[place] }),
  });
  const tie = form.tie ? [{ id: "pick-tie", choice: "tie", label: t("choose.tie") }] : [];
  const bad = form.all_bad ? [{ id: "pick-bad", choice: "all_bad", label: t(form.kind === "pair" ? "choose.both_bad" : "choose.all_bad") }] : [];
  if (form.kind === "ranking") return bad;
  const sides = form.strength
    ? [better(0, 3), better(0, 2), better(0, 1), ...tie, better(1, 1), better(1, 2), better(1, 3)]
    : [better(0, null), better(1, null), ...tie];
  return [...sides, ...bad];
}

// Whether one press is the whole answer; what a person wants to add is entered before it.
export function isOneStep(form) {
  return form.kind === "pair" && !form.rules.length && !form.attributes.length;
}

// Whether something may be added to the choice.
export function takesMore(form) {
  return form.comment || form.correction || form.flags.length > 0;
}

export const short = (text, most) => (text.length > most ? `${text.slice(0, most)}…` : text);

export class Sheet {
  // saved: what content() gave before, or null
  constructor(task, saved) {
    this.task = task;
    this.form = task.form;
    this.places = task.responses.map((_, place) => place);
    const kept = saved || {};
    this.choice = kept.choice ?? null; // {choice, place, strength}
    this.groups = (kept.groups ?? []).map((group) => [...group]); // places, best first; several in a group are tied
    this.rules = this.places.map((place) => ({ ...(kept.rules?.[place] ?? {}) })); // rule → broken
    this.ratings = this.places.map((place) => ({ ...(kept.ratings?.[place] ?? {}) })); // attribute → points
    this.flags = new Set(kept.flags ?? []);
    this.comment = kept.comment ?? "";
    this.correction = kept.correction ?? null; // {place, text}
  }

  // Everything that was entered, for drafts; null where nothing was.
  content() {
    const { choice, groups, rules, ratings, comment, correction } = this;
    const questions = [...rules, ...ratings].some((one) => Object.keys(one).length);
    const entered = choice || groups.length || this.flags.size || comment || correction || questions;
    return entered ? { choice, groups, rules, ratings, flags: [...this.flags], comment, correction } : null;
  }

  choose({ choice, place, strength }) {
    this.choice = { choice, place: place ?? null, strength: strength ?? null };
    if (this.form.kind === "ranking") this.groups = [];
  }

  isChosen(option) {
    const { choice, place = null, strength = null } = this.choice ?? {};
    return choice === option.choice && place === (option.place ?? null) && strength === (option.strength ?? null);
  }

  // Ranking
  rankOf(place) {
    let rank = 1;
    for (const group of this.groups) {
      if (group.includes(place)) return rank;
      rank += group.length;
    }
    return null;
  }

  // Put a response after those that stand, or beside the last; one that stands is taken out.
  rank(place, tied) {
    this.choice = null;
    if (this.rankOf(place) !== null) this.#remove(place);
    else if (tied && this.groups.length) this.groups.at(-1).push(place);
    else this.groups.push([place]);
  }

  unrankLast() {
    const last = this.groups.at(-1)?.at(-1);
    if (last !== undefined) this.#remove(last);
    return last;
  }

  // Places in their order, each with whether it is tied with the one before.
  line() {
    return this.groups.flatMap((group) => group.map((place, at) => ({ place, tied: at > 0 })));
  }

  #fromLine(line) {
    this.groups = [];
    line.forEach(({ place, tied }, at) => (tied && at ? this.groups.at(-1).push(place) : this.groups.push([place])));
  }

  #remove(place) {
    this.groups = this.groups.map((group) => group.filter((one) => one !== place)).filter((group) => group.length);
  }

  toggleTie(at) {
    const line = this.line();
    if (at > 0 && line[at]) line[at].tied = !line[at].tied;
    this.#fromLine(line);
  }

  move(place, to) {
    const line = this.line();
    const from = line.findIndex((one) => one.place === place);
    if (from < 0 || to < 0 || to >= line.length || to === from) return;
    if (line[from + 1]) line[from + 1].tied &&= line[from].tied; // those behind it keep their rank
    const [moved] = line.splice(from, 1);
    line.splice(to, 0, { ...moved, tied: false });
    if (line[to + 1]) line[to + 1].tied = false;
    this.#fromLine(line);
  }

  // What is still to be said: [{text, question}]; question names the group of controls, or is null for the choice.
  missing() {
    const found = [];
    if (this.form.kind === "ranking") {
      const left = this.places.filter((place) => this.rankOf(place) === null);
      if (left.length && this.choice?.choice !== "all_bad") {
        found.push({ text: t("missing.ranking", { letters: left.map((place) => LETTERS[place]).join(" ") }), question: null });
      }
    } else if (!this.choice) found.push({ text: t("missing.choice"), question: null });
    for (const place of this.places) {
      const ask = (question, id) => found.push({ text: t("missing.question", { letter: LETTERS[place], question: short(question, 60) }), question: id });
      this.form.rules.forEach((rule, at) => rule in this.rules[place] || ask(rule, `rule-${place}-${at}`));
      this.form.attributes.forEach(({ name }, at) => name in this.ratings[place] || ask(name, `rating-${place}-${at}`));
    }
    return found;
  }

  // What is sent; responses are named by their place on the screen.
  answer(skip) {
    const { form } = this;
    const said = { flags: form.flags.filter((flag) => this.flags.has(flag)), comment: this.comment.trim().toWellFormed() || null };
    if (skip) return { choice: "skip", ...said };
    const choice = this.choice ?? { choice: "ranking" };
    const corrected = this.correction;
    const changed = corrected && corrected.text.trim() && corrected.text !== this.task.responses[corrected.place].original;
    return {
      ...choice,
      ...(choice.choice === "ranking" ? { ranking: this.groups } : {}),
      ...(form.rules.length ? { rules: this.rules.map((one) => form.rules.filter((rule) => one[rule])) } : {}),
      ...(form.attributes.length ? { ratings: this.ratings } : {}),
      ...said,
      correction: changed ? { place: corrected.place, text: corrected.text.toWellFormed() } : null,
    };
  }
}

// What an answer (as the server gives it back) looked like on its sheet.
export function savedOf(task, answer) {
  const chosen = ["response", "tie", "all_bad"].includes(answer.choice);
  const broken = (place) => Object.fromEntries(task.form.rules.map((rule) => [rule, answer.rules[place].includes(rule)]));
  return {
    choice: chosen ? { choice: answer.choice, place: answer.place, strength: answer.strength } : null,
    groups: answer.ranking ?? [],
    rules: answer.rules && task.responses.map((_, place) => broken(place)),
    ratings: answer.ratings,
    flags: answer.flags,
    comment: answer.comment ?? "",
    correction: answer.correction,
  };
}

// An answer in a few words.
export function summary(answer, form) {
  const { choice, place, strength, ranking } = answer;
  if (choice === "response") return t(strength ? `choose.strength${strength}` : "choose.better", { letter: LETTERS[place] });
  if (choice === "ranking") return ranking.map((group) => group.map((one) => LETTERS[one]).join(" = ")).join(" > ");
  if (choice === "all_bad") return t(form.kind === "pair" ? "choose.both_bad" : "choose.all_bad");
  return t(choice === "tie" ? "choose.tie" : "said.skipped");
}
