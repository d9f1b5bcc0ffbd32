/** Keeps the last message in sight, unless the reader has scrolled up. */

import { byId } from "./dom.js";

const NEAR_END = 60;

/** Watch the messages' place; return `hold(list)` to put a list there, `toEnd()`, and `grown(own)` after a message. */
export function setUpScrolling() {
  const [place, newer] = [byId("logs"), byId("newer")];
  let following = true;
  let size = "";

  const toEnd = () => {
    following = true;
    newer.hidden = true;
    place.scrollTop = place.scrollHeight;
  };
  // A new message, a keyboard that slides in and a turned phone change the size, and then scroll by themselves:
  // only a scroll at an unchanged size is the reader's.
  const sizes = new ResizeObserver(() => following && toEnd());
  place.addEventListener("scroll", () => {
    const now = `${place.scrollHeight} ${place.clientHeight}`;
    const atEnd = place.scrollHeight - place.scrollTop - place.clientHeight < NEAR_END;
    if (atEnd || now === size) following = atEnd;
    if (atEnd) newer.hidden = true;
    size = now;
  });
  newer.addEventListener("click", toEnd);
  sizes.observe(place);

  return {
    toEnd,
    hold(list) {
      place.append(list);
      sizes.observe(list);
    },
    grown(own) {
      if (own) toEnd();
      else newer.hidden = following;
    },
  };
}
