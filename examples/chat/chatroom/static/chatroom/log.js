/** The messages of one room: what was said, what this page is still sending, who came and went. */

import { avatar, el, icon, milliseconds, tag } from "./dom.js";

const MOST = 300;
const SAME_SPEAKER = 120000;

const clock = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });

export class Log {
  #pending = new Map();

  constructor(room) {
    this.list = el("ol", { role: "log", "aria-live": "polite", "aria-label": `Messages in ${room}` });
    this.list.append(el("li", { class: "empty" }, el("b", {}, "Nothing said yet"), "Say something, or open this room at the other server."));
  }

  /** Show what is being sent, until it comes back. */
  addPending(ref, text, name) {
    const note = this.#element({ text, author: { name }, sent_at: Date.now() / 1000 }, true);
    note.classList.add("pending");
    note.querySelector(".route").append("sending");
    this.#pending.set(ref, { note, text });
    this.#append(note);
  }

  /** Show a message that came; `own` is whether this page sent it. */
  add(message, own) {
    this.dropPending(message.ref);
    const note = this.#element(message, own && !message.worker);
    note.dataset.id = message.id;
    note.querySelector(".route").append(...route(message));
    this.#append(note);
  }

  /** Take away what was being sent; return its text, if there was any. */
  dropPending(ref) {
    const found = this.#pending.get(ref);
    this.#pending.delete(ref);
    found?.note.remove();
    return found?.text;
  }

  /** The connection is lost: nobody can tell whether what was under way has arrived. */
  doubt(sendAgain) {
    for (const [ref, { note, text }] of this.#pending) {
      note.classList.replace("pending", "unsure");
      const again = el("button", { type: "button" }, "Send again");
      again.addEventListener("click", () => { if (sendAgain(text)) this.dropPending(ref); });
      note.querySelector(".route").replaceChildren("It may not have been sent.", again);
    }
  }

  /** Show a line about the room itself. */
  remark(text) {
    this.#append(el("li", { class: "aside" }, text));
  }

  #append(entry) {
    this.list.querySelector(".empty")?.remove();
    const last = this.list.lastElementChild;
    const near = last && entry.dataset.at - last.dataset.at < SAME_SPEAKER;
    if (near && entry.dataset.speaker && last.dataset.speaker === entry.dataset.speaker) entry.classList.add("follows");
    this.list.append(entry);
    while (this.list.children.length > MOST) this.list.firstElementChild.remove();
  }

  #element(message, own) {
    const sent = new Date(message.sent_at * 1000);
    const speaker = message.worker ? `worker ${message.worker.pid}` : message.author.name;
    const kind = ["note", own && "own", message.worker && "job"].filter(Boolean).join(" ");
    const face = message.worker ? el("span", { class: "avatar", "aria-hidden": "true" }, icon("gear")) : avatar(speaker);
    const name = message.worker ? `Worker ${message.worker.pid}` : speaker;
    return el(
      "li",
      { class: kind, "data-speaker": own ? "me" : speaker, "data-at": sent.getTime(), "data-server": message.worker && "worker" },
      face,
      el(
        "div",
        { class: "body" },
        el("p", { class: "who" }, el("b", {}, name), el("time", { datetime: sent.toISOString() }, clock.format(sent))),
        el("p", { class: "text", dir: "auto" }, message.text),
        el("p", { class: "route" }),
      ),
    );
  }
}

function route(message) {
  const arrow = () => el("span", { "aria-hidden": "true" }, "\u2192");
  const stops = message.worker ? [tag("worker")] : [tag(message.via)];
  const words = el("span", { class: "hidden" }, `by server ${message.via}, through server ${message.at}, in `);
  const waited = message.worker ? ` (${milliseconds(message.worker.waited_ms)} until it began)` : "";
  return [words, ...stops, arrow(), tag(message.at), el("span", { class: "ms" }, milliseconds(message.ms) + waited)];
}
