/** What the page does without a server: the message box, the drawers, light and dark, and what is remembered. */

import { byId } from "./dom.js";

const THEMES = { "": "as the system", light: "light", dark: "dark" };

/** Keep a value for the next visit, if the browser lets us. */
export function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // Private windows may refuse: then nothing is remembered.
  }
}

/** Return a remembered value, or "". */
export function recall(key) {
  try {
    return localStorage.getItem(key) ?? "";
  } catch {
    return "";
  }
}

/** Make the message box work: `say(text)` returns whether the text was taken. Return how to show a fault. */
export function setUpComposer(say) {
  const [form, box, count, fault] = ["composer", "text", "count", "fault"].map(byId);
  const limit = Number(box.dataset.length);
  const measure = () => {
    const length = [...box.value.trim()].length;
    count.textContent = length > limit * 0.8 ? `${length - limit > 0 ? "" : "-"}${Math.abs(limit - length)}` : "";
    count.classList.toggle("over", length > limit);
    return length;
  };
  const put = (text) => {
    box.value = text;
    box.focus();
    measure();
  };
  box.addEventListener("input", () => { measure(); fault.textContent = ""; });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const length = measure();
    fault.textContent = "";
    if (length > limit) fault.textContent = `A message can have ${limit} characters; this one has ${length}.`;
    else if (length && say(box.value.trim())) put("");
    else box.focus();
  });
  for (const hint of form.querySelectorAll("[data-text]")) hint.addEventListener("click", () => put(hint.dataset.text));
  return {
    fault(text, unsent) {
      fault.textContent = text;
      if (unsent && !box.value) put(unsent);
      return false;
    },
  };
}

/** Make the sides open and close where the window has no room for them; return how to close them. */
export function setUpDrawers() {
  const close = () => {
    for (const side of document.querySelectorAll(".side.open")) {
      side.classList.remove("open");
      const opener = document.querySelector(`[data-open="${side.id}"]`);
      opener.setAttribute("aria-expanded", "false");
      document.querySelector("main").inert = false;
      opener.focus();
    }
    byId("veil").hidden = true;
  };
  for (const button of document.querySelectorAll("[data-open]")) {
    button.addEventListener("click", () => {
      const side = byId(button.dataset.open);
      side.classList.add("open");
      byId("veil").hidden = false;
      document.querySelector("main").inert = true;
      button.setAttribute("aria-expanded", "true");
      side.querySelector(".close").focus();
    });
  }
  for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", close);
  byId("veil").addEventListener("click", close);
  addEventListener("keydown", (event) => event.key === "Escape" && close());
  return close;
}

/** Make the theme's button go through: as the system, light, dark. */
export function setUpTheme() {
  const use = (theme) => {
    document.documentElement.dataset.theme = theme;
    byId("theme-name").textContent = `Colours: ${THEMES[theme]}`;
    byId("theme").title = `Colours: ${THEMES[theme]}`;
    remember("chat-theme", theme);
  };
  const known = recall("chat-theme");
  use(known in THEMES ? known : "");
  byId("theme").addEventListener("click", () => {
    const themes = Object.keys(THEMES);
    use(themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length]);
  });
}
