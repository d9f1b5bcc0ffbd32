/** One WebSocket that comes back: it opens, notices when it is dead, and tries again at growing, jittered intervals. */

const FIRST_WAIT = 500;
const LONGEST_WAIT = 8000;
const PING_EVERY = 10000;
const PONG_WITHIN = 5000;

/** Fires `up`, `down` (detail: `wait`, the milliseconds until the next try) and `said` (detail: the object). */
export class Connection extends EventTarget {
  #socket = null;
  #tries = 0;
  #timers = new Set();

  constructor(url) {
    super();
    this.url = url;
    // A phone that wakes up, or finds its network again, does not wait for the timer.
    addEventListener("online", () => this.retry());
    addEventListener("pageshow", () => this.retry());
    document.addEventListener("visibilitychange", () => document.hidden || this.retry());
  }

  get open() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  /** Open now, unless it is open or being opened. */
  retry() {
    if (this.#socket && this.#socket.readyState <= WebSocket.OPEN) return;
    this.#forgetTimers();
    const socket = (this.#socket = new WebSocket(this.url));
    socket.onopen = () => this.#begin();
    socket.onmessage = (event) => this.#take(JSON.parse(event.data));
    socket.onclose = () => this.#end(socket);
  }

  /** Send an object; return whether there was a connection to send it by. */
  send(content) {
    if (this.open) this.#socket.send(JSON.stringify(content));
    return this.open;
  }

  #begin() {
    this.#later(() => this.#ping(), PING_EVERY);
    this.dispatchEvent(new Event("up"));
  }

  #take(said) {
    this.#tries = 0;
    if (said.type === "pong") {
      this.#forgetTimers();
      this.#later(() => this.#ping(), PING_EVERY);
      return;
    }
    this.dispatchEvent(new CustomEvent("said", { detail: said }));
  }

  #ping() {
    const socket = this.#socket;
    this.send({ type: "ping" });
    // A socket whose other end is gone without a word may take minutes to say so.
    this.#later(() => { socket.close(); this.#end(socket); }, PONG_WITHIN);
  }

  #end(socket) {
    if (socket !== this.#socket) return;
    this.#socket = null;
    this.#forgetTimers();
    const wait = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.#tries++) * (0.5 + Math.random() / 2);
    this.#later(() => this.retry(), wait);
    this.dispatchEvent(new CustomEvent("down", { detail: { wait } }));
  }

  #later(action, wait) {
    const timer = setTimeout(() => { this.#timers.delete(timer); action(); }, wait);
    this.#timers.add(timer);
  }

  #forgetTimers() {
    this.#timers.forEach(clearTimeout);
    this.#timers.clear();
  }
}
