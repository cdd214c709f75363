// Creates elements. Text stays text: nothing on this page parses it as markup.

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export function tell(text) {
  $("status").textContent = text;
}

// The server counts code points, JavaScript counts UTF-16 units.
export function points(text) {
  return Array.from(text);
}

// Asks for confirmation and resolves to true or false. Escape means no.
export function sure(text) {
  const dialog = $("confirm");
  $("confirm-text").textContent = text;
  dialog.showModal();
  $("no").focus();
  return new Promise((resolve) => {
    const end = (answer) => () => {
      $("yes").onclick = $("no").onclick = dialog.onclose = null;
      if (dialog.open) dialog.close();
      resolve(answer);
    };
    $("yes").onclick = end(true);
    $("no").onclick = end(false);
    dialog.onclose = end(false);
  });
}
