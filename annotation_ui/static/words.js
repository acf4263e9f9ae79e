// The words of the page in the reader's language, and what makes elements of them.
let words = {};
let language = document.documentElement.dataset.language || "en"; // lang itself is overwritten by Gradio

export const LETTERS = "ABCDEFGHI"; // the names of the responses, by their place on the screen

// Take the words of a language; the page keeps the old ones where they cannot be fetched.
export async function speak(wanted) {
  const answer = await fetch(`/app/locales/${wanted}.json`);
  if (!answer.ok) throw new Error(`no words in ${wanted}`);
  words = await answer.json();
  language = wanted;
  document.documentElement.lang = wanted;
  document.documentElement.dir = words.direction;
}

export const speaking = () => language;

// The words for a key; {name} in them is replaced by the value of that name.
export function t(key, values = {}) {
  return (words[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === "number" ? value.toLocaleString(language) : value;
  });
}

export const has = (key) => key in words;

export function time(milliseconds) {
  const at = new Date(milliseconds);
  const today = at.toDateString() === new Date().toDateString();
  return new Intl.DateTimeFormat(language, { ...(today ? {} : { dateStyle: "medium" }), timeStyle: "short" }).format(at);
}

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// A button with its key printed on it.
export function button(id, label, key, press, attributes = {}) {
  const made = element("button", { type: "button", id, "data-key": key, "aria-keyshortcuts": key, ...attributes }, label);
  made.addEventListener("click", press);
  return made;
}
