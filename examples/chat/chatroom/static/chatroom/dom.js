/** Builds elements; text only ever becomes text. */

/** Return the element with this id. */
export const byId = (id) => document.getElementById(id);

/** Return a new element: `props` are attributes (`class`, `data-x`, ...), `children` elements or text. */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** Return one of the page's own icons. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Give an element the initials and the colour of a person. */
export function dress(avatar, name) {
  const words = name.split(" ").filter(Boolean);
  const letters = words.length > 1 ? [words[0], words.at(-1)].map((word) => [...word][0]) : [...name].slice(0, 2);
  avatar.textContent = letters.join("").toUpperCase();
  const hash = [...name].reduce((sum, char) => (sum * 31 + char.codePointAt(0)) % 9973, 7);
  avatar.style.setProperty("--hue", (hash * 47) % 360);
  return avatar;
}

/** Return the avatar of a person. */
export const avatar = (name) => dress(el("span", { class: "avatar", "aria-hidden": "true" }), name);

/** Return the small sign of a server. */
export const tag = (server) => el("span", { class: "tag", "data-server": server }, server);

/** Return milliseconds as words, never more exact than they are. */
export const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;

/** Return "1 person" or "3 people". */
export const peopleCount = (count) => (count === 1 ? "1 person" : `${count} people`);
