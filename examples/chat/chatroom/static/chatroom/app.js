/** The page: joins what the server says, what is shown, and what the person does. */

import { Connection } from "./connection.js";
import { byId, dress } from "./dom.js";
import { Log } from "./log.js";
import { setUpScrolling } from "./scrolling.js";
import { Latency, showPeople, showProcesses, showRooms } from "./panels.js";
import { setUpComposer, setUpDrawers, setUpTheme, recall, remember } from "./shell.js";

// A server that has just started learns who is where within this time (ms): till then nobody "came in".
const SETTLING = 1500;
const page = Array.from(crypto.getRandomValues(new Uint8Array(6)), (byte) => byte.toString(16).padStart(2, "0")).join("");
const state = { me: "", name: "", server: {}, active: "", rooms: new Map(), listed: [], servers: [], workers: new Map() };
const sentAt = new Map();
const latency = new Latency();
const link = new Connection(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
const composer = setUpComposer(say);
const scrolling = setUpScrolling();
let number = 0;
let quietUntil = 0;
let lostAt = 0;

// ---- What the server says ----

const heard = {
  server(said) {
    state.server = said;
    byId("hello-server").textContent = `server ${said.name}`;
    byId("link").dataset.server = said.name;
    byId("link-text").textContent = `Server ${said.name}`;
  },
  welcome(said) {
    Object.assign(state, { me: said.id, name: said.name });
    remember("chat-name", said.name);
    byId("hello").close();
    byId("my-name").textContent = said.name;
    dress(byId("my-avatar"), said.name);
    const wanted = [...state.rooms.values()].map((room) => room.name);
    for (const room of wanted.length ? wanted : [roomInAddress() || "Lobby"]) join(room, wanted.length > 0);
  },
  joined(said) {
    if (!state.rooms.has(said.key)) {
      const log = new Log(said.name);
      log.list.hidden = true;
      scrolling.hold(log.list);
      state.rooms.set(said.key, { key: said.key, name: said.name, log, unread: 0, inside: null });
    }
    if (said.ref !== "again") open(said.key);
    show();
  },
  left(said) {
    state.rooms.get(said.key)?.log.list.remove();
    state.rooms.delete(said.key);
    if (state.active === said.key) open(state.rooms.keys().next().value ?? "");
    show();
  },
  people(said) {
    Object.assign(state, { listed: said.rooms, servers: said.servers.toSorted((one, other) => (one.name < other.name ? -1 : 1)) });
    for (const room of said.rooms) remarkOn(room);
    show();
  },
  message(said) {
    const room = state.rooms.get(said.key);
    if (!room) return;
    const own = typeof said.ref === "string" && said.ref.startsWith(page);
    room.log.add(said, own);
    if (said.worker) state.workers.set(said.worker.pid, (state.workers.get(said.worker.pid) ?? 0) + 1);
    else latency.add(said.ms);
    if (sentAt.has(said.ref)) latency.addTrip(performance.now() - sentAt.get(said.ref));
    sentAt.delete(said.ref);
    if (room.key !== state.active || document.hidden) room.unread += 1;
    if (room.key === state.active) scrolling.grown(own);
    show();
  },
  error(said) {
    sentAt.delete(said.ref);
    if (byId("hello").open) {
      byId("name-fault").textContent = said.text;
      return;
    }
    const texts = [...state.rooms.values()].map((room) => room.log.dropPending(said.ref));
    composer.fault(said.text, texts.find(Boolean));
  },
};

link.addEventListener("said", ({ detail }) => heard[detail.type]?.(detail));
link.addEventListener("up", () => {
  quietUntil = performance.now() + SETTLING;
  composer.fault("");
  byId("lost").hidden = true;
  byId("link").classList.remove("down");
  if (lostAt) {
    const seconds = Math.round((performance.now() - lostAt) / 1000);
    for (const room of state.rooms.values()) room.log.remark(`No connection for ${seconds} s: what was said meanwhile is missing here`);
    lostAt = 0;
  }
  if (state.name) link.send({ type: "hello", name: state.name });
});
link.addEventListener("down", ({ detail }) => {
  lostAt ||= performance.now();
  byId("link").classList.add("down");
  byId("link-text").textContent = "Offline";
  byId("lost").hidden = false;
  const server = state.server.name ? `Server ${state.server.name}` : "The server";
  byId("lost-text").textContent = `${server} does not answer. Next try in ${Math.ceil(detail.wait / 1000)} s. What others say meanwhile is missed.`;
  for (const room of state.rooms.values()) {
    room.log.doubt((text) => send(room, text));
    room.inside = null;
  }
});

// ---- What the person does ----

function join(name, again = false) {
  if (!link.send({ type: "join", room: name, ref: again ? "again" : null })) composer.fault("There is no connection just now.");
}

function say(text) {
  const room = state.rooms.get(state.active);
  if (!room) return composer.fault("Open a room first.");
  return send(room, text);
}

function send(room, text) {
  const ref = `${page}-${number++}`;
  if (!link.open) {
    composer.fault("There is no connection just now. Your text is kept.");
    return false;
  }
  room.log.addPending(ref, text, state.name);
  sentAt.set(ref, performance.now());
  link.send({ type: "say", room: room.name, text, ref });
  scrolling.toEnd();
  return true;
}

function choose(name) {
  const room = [...state.rooms.values()].find((one) => one.name === name);
  if (room) open(room.key);
  else join(name);
  closeDrawers();
}

function open(key) {
  state.active = key;
  for (const room of state.rooms.values()) room.log.list.hidden = room.key !== key;
  const room = state.rooms.get(key);
  if (room) {
    room.unread = 0;
    history.replaceState(null, "", `#${encodeURIComponent(room.name)}`);
  }
  scrolling.toEnd();
  show();
}

// ---- What is shown ----

function show() {
  const listed = new Map(state.listed.map((room) => [room.key, { ...room, unread: 0, joined: false }]));
  for (const room of state.rooms.values()) {
    const known = listed.get(room.key) ?? { key: room.key, name: room.name, count: 0, people: [] };
    listed.set(room.key, { ...known, unread: room.unread, joined: true });
  }
  const active = listed.get(state.active);
  showRooms([...listed.values()], state.active, choose);
  showPeople(active ?? { count: 0, people: [] }, state.me);
  showProcesses(state.servers, state.server.id, state.workers);
  const unread = [...state.rooms.values()].reduce((sum, room) => sum + room.unread, 0);
  byId("room-name").textContent = active?.name ?? "No room";
  byId("leave").hidden = !active;
  byId("any-unread").hidden = !unread;
  document.title = (unread ? `(${unread}) ` : "") + (active?.name ?? "Chat");
}

function remarkOn(listed) {
  const room = state.rooms.get(listed.key);
  if (!room || listed.count > listed.people.length) return;
  const now = new Map(listed.people.filter((person) => person.id !== state.me).map((person) => [person.id, person]));
  const before = room.inside ?? now;
  room.inside = now;
  if (performance.now() < quietUntil) return;
  const newcomers = [...now.values()].filter((person) => !before.has(person.id));
  const leavers = [...before.values()].filter((person) => !now.has(person.id));
  // Who came back at once, as with a page that is loaded again, was never away.
  const only = (people, others) => people.filter((one) => !others.some((other) => other.name === one.name));
  const came = only(newcomers, leavers);
  for (const server of new Set(came.map((person) => person.server))) {
    room.log.remark(`${namesOf(came.filter((person) => person.server === server))} came in, at server ${server}`);
  }
  const went = only(leavers, newcomers);
  if (went.length) room.log.remark(`${namesOf(went)} ${went.length === 1 ? "is" : "are"} gone`);
}

function namesOf(people) {
  return new Intl.ListFormat("en").format(people.map((person) => person.name));
}

function roomInAddress() {
  try {
    return decodeURIComponent(location.hash.slice(1)).trim();
  } catch {
    return "";
  }
}

// ---- Set up ----

const closeDrawers = setUpDrawers();
setUpTheme();
byId("retry").addEventListener("click", () => link.retry());
byId("leave").addEventListener("click", () => link.send({ type: "leave", room: state.rooms.get(state.active)?.name }));
byId("new-room").addEventListener("submit", (event) => {
  event.preventDefault();
  choose(byId("new-room-name").value);
  byId("new-room-name").value = "";
});
byId("hello-form").addEventListener("submit", (event) => {
  event.preventDefault();
  byId("name-fault").textContent = "";
  if (!link.send({ type: "hello", name: byId("name").value })) byId("name-fault").textContent = "The server does not answer yet. Try again in a moment.";
});
byId("hello").addEventListener("cancel", (event) => state.name || event.preventDefault());
byId("rename").addEventListener("click", () => askName());
addEventListener("hashchange", () => roomInAddress() && state.name && choose(roomInAddress()));
document.addEventListener("visibilitychange", () => !document.hidden && state.active && open(state.active));

function askName() {
  byId("name").value = state.name || recall("chat-name");
  byId("hello").showModal();
  byId("name").select();
}

show();
askName();
link.retry();
