// What the address names after its #: a knowledge base, a conversation and an answer of it, and a
// document at a passage. The history of the browser is the only stack: back closes a source.

const NAMES = ["base", "conversation", "answer", "document", "start", "end", "page"];
export const NO_SOURCE = { document: null, start: null, end: null, page: null };

export function address() {
  const read = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(NAMES.map((name) => [name, read.get(name) || ""]));
}

// The address with some parts changed; null or "" removes one.
export function link(changes) {
  const parts = Object.entries({ ...address(), ...changes })
    .filter(([, value]) => value !== null && value !== "" && value !== undefined);
  const hash = new URLSearchParams(parts).toString();
  return `${location.pathname}${hash ? `#${hash}` : ""}`;
}

export const wholeLink = (changes) => new URL(link(changes), location.href).href;

export function go(changes, { push = false } = {}) {
  const wanted = link(changes);
  if (wanted === location.pathname + location.hash) return;
  if (push) history.pushState({ pushed: true }, "", wanted);
  else history.replaceState(history.state, "", wanted);
}

// Leaves the source: back if the page itself opened it, otherwise by a changed address.
export function leaveSource() {
  if (history.state && history.state.pushed && address().document) history.back();
  else go(NO_SOURCE);
}
