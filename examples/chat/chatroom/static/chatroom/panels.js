/** The panels beside the messages: rooms, people, latency, processes. */

import { avatar, byId, el, icon, milliseconds, peopleCount, tag } from "./dom.js";

const KEPT = 60;
const FEWEST_DRAWN = 20;
const NAMED = 3;

/** Show the rooms; `choose` is called with the name of the one that is clicked. */
export function showRooms(rooms, active, choose) {
  const [list, keys] = [byId("room-list"), JSON.stringify(rooms.map((room) => room.key))];
  // The buttons stay while they can: a click or a focus would be lost with one that is replaced.
  if (list.dataset.keys !== keys) {
    const focused = document.activeElement.dataset.key;
    list.replaceChildren(...rooms.map((room) => el("li", {}, roomButton(room, choose))));
    list.dataset.keys = keys;
    if (focused) list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }
  rooms.forEach((room, i) => fillButton(list.children[i].firstChild, room, room.key === active));
}

function roomButton(room, choose) {
  const button = el("button", { type: "button", "data-key": room.key });
  button.addEventListener("click", () => choose(room.name));
  return button;
}

function fillButton(button, room, active) {
  const unread = room.unread ? el("span", { class: "unread" }, String(room.unread), el("span", { class: "hidden" }, " unread")) : null;
  const count = el("span", { class: "people-count" }, room.count ? String(room.count) : "");
  count.append(room.count ? el("span", { class: "hidden" }, " inside") : "");
  button.className = room.joined ? "room joined" : "room";
  if (active) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
  button.replaceChildren(el("div", {}, el("b", {}, room.name), el("small", {}, namesInside(room))), unread ?? count);
}

function namesInside(room) {
  const names = room.people.slice(0, NAMED).map((person) => person.name);
  if (!names.length) return "Nobody inside";
  const more = room.count - names.length;
  return names.join(", ") + (more > 0 ? ` and ${more} more` : "");
}

/** Show who is in the open room. */
export function showPeople(room, me) {
  byId("people").replaceChildren(
    ...room.people.map((person) =>
      el("li", {}, avatar(person.name), el("span", {}, person.name, person.id === me ? el("small", {}, " (you)") : null), tag(person.server))),
    ...(room.count > room.people.length ? [el("li", {}, `and ${room.count - room.people.length} more`)] : []),
  );
  byId("room-count").textContent = room.count ? peopleCount(room.count) : "Nobody inside";
  byId("room-names").textContent = room.count ? `: ${namesInside(room)}` : "";
}

/** Show the servers that are heard, and the workers that answered. */
export function showProcesses(servers, here, workers) {
  byId("processes").replaceChildren(
    ...servers.map((server) => {
      const mine = server.id === here ? el("span", { class: "here" }, "you") : null;
      return process(server.name, server.name, `Server ${server.name}`, `pid ${server.pid}, ${peopleCount(server.people)}`, mine);
    }),
    ...[...workers].map(([pid, done]) =>
      process("worker", icon("gear"), "Worker", `pid ${pid}, ${done === 1 ? "1 job" : `${done} jobs`} seen`)),
  );
}

function process(server, sign, name, facts, more = null) {
  const badge = el("span", { class: "badge", "aria-hidden": "true" }, sign);
  return el("li", { "data-server": server }, badge, el("div", {}, el("b", {}, name), el("small", {}, facts)), more);
}

/** The times of the last messages, drawn as a line. */
export class Latency {
  #times = [];

  /** Add a message's milliseconds from server to server. */
  add(ms) {
    this.#times = [...this.#times, ms].slice(-KEPT);
    const sorted = this.#times.toSorted((one, other) => one - other);
    const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
    byId("latency-last").textContent = milliseconds(ms);
    byId("latency-median").textContent = milliseconds(at(0.5));
    byId("latency-slow").textContent = milliseconds(at(0.95));
    this.#draw(sorted.at(-1), at(0.5));
  }

  /** Add the milliseconds from pressing Enter to seeing one's own message. */
  addTrip(ms) {
    byId("latency-trip").textContent = milliseconds(ms);
  }

  #draw(highest, median) {
    const step = 240 / (Math.max(this.#times.length, FEWEST_DRAWN) - 1);
    const start = 240 - (this.#times.length - 1) * step;
    const points = this.#times.map((ms, i) => `${(start + i * step).toFixed(1)} ${(46 - (ms / Math.max(highest, 1)) * 42).toFixed(1)}`);
    const svg = byId("latency-line");
    svg.setAttribute("aria-label", `The last ${this.#times.length} messages: ${milliseconds(median)} in the middle, ${milliseconds(highest)} at most`);
    svg.querySelector(".line").setAttribute("d", `M${points.join("L")}`);
    svg.querySelector(".area").setAttribute("d", `M${points.join("L")}L240 48L${start.toFixed(1)} 48Z`);
  }
}
