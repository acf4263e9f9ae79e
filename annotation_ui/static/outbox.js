// What was decided and not yet confirmed: kept in localStorage, one outbox for each person, sent in order until the
// server has said that it keeps it.
export async function post(path, body) {
  return fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(15000),
  });
}

// Sent even while the page is being closed.
export function postOnLeaving(path, body) {
  navigator.sendBeacon(path, new Blob([JSON.stringify(body)], { type: "application/json" }));
}

// localStorage may be full, forbidden or spoilt: then a thing is remembered for as long as the page is open.
const unkept = new Map();

export function remember(name, value) {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, JSON.stringify(value));
    unkept.delete(name);
  } catch {
    unkept.set(name, value);
  }
}

export function recall(name) {
  if (unkept.has(name)) return unkept.get(name);
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null;
  }
}

export const token = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

export class Outbox {
  // onAnswer(item, data, refused): the server has answered; onChange(): something to tell
  constructor(userId, onAnswer, onChange) {
    this.name = `rlhf-outbox-${userId}`;
    this.onAnswer = onAnswer;
    this.onChange = onChange;
    this.sending = false;
    this.problem = ""; // "", "offline", "signed out" or "server"
  }

  items() {
    const kept = recall(this.name);
    return Array.isArray(kept) ? kept : [];
  }

  // about: what is not for the server: the answer in words, the task that was taken back
  put(kind, body, about = {}) {
    remember(this.name, [...this.items(), { kind, body, ...about }]);
    this.flush();
  }

  // What an answer's status says about the connection; true where the answer can be used.
  hear(answer) {
    this.problem = answer.status === 401 ? "signed out" : answer.status >= 500 || answer.status === 429 ? "server" : "";
    return !this.problem;
  }

  // No answer came, or one that is none of ours: a proxy's page, half a reply.
  lose(error) {
    this.problem = error instanceof SyntaxError ? "server" : "offline";
  }

  async flush() {
    if (this.sending) return;
    this.sending = true;
    try {
      for (let items = this.items(); items.length; items = this.items()) {
        const { kind, body } = items[0];
        const answer = await post(kind === "undo" ? "/api/v1/undo" : "/api/v1/judgements", body);
        if (!this.hear(answer)) return;
        const data = await answer.json();
        remember(this.name, this.items().filter((one) => one.body.client_token !== body.client_token));
        this.onAnswer(items[0], data, !answer.ok);
      }
    } catch (error) {
      this.lose(error);
    } finally {
      this.sending = false;
      this.onChange();
    }
  }
}
