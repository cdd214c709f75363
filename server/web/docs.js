// The reference of the API, from /openapi.json. All text is set as text, never as HTML.

const form = document.getElementById("key");
const problem = document.getElementById("problem");
const list = document.getElementById("routes");

function element(tag, text = "", ...children) {
  const made = document.createElement(tag);
  made.append(text, ...children);
  return made;
}

/** The schema that a reference names, and its name. */
function resolved(schema, all) {
  const name = schema.$ref?.split("/").pop();
  return name ? { name, ...all[name] } : schema;
}

/** A schema in words: `list of HitResponse`, `string or null`. */
function kind(schema, all) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf || schema.oneOf) return [...new Set((schema.anyOf ?? schema.oneOf).map((each) => kind(each, all)))].join(" or ");
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${kind(schema.items ?? {}, all)}`;
  return schema.type ?? "any";
}

function limits(schema) {
  const parts = [];
  for (const [key, word] of [["minimum", "from"], ["maximum", "to"], ["minLength", "at least"], ["maxLength", "at most"]])
    if (key in schema) parts.push(`${word} ${schema[key]}`);
  if ("default" in schema) parts.push(`default ${JSON.stringify(schema.default)}`);
  return parts.join(", ");
}

/** A table of fields; fields that are objects of their own open below it. */
function fields(schema, all, seen = []) {
  const whole = resolved(schema, all);
  if (seen.includes(whole.name)) return element("p", `As ${whole.name} above.`);
  const body = element("tbody");
  const inner = element("div");
  for (const [name, field] of Object.entries(whole.properties ?? {})) {
    const needed = whole.required?.includes(name) ? "needed" : "";
    const about = [field.description, limits(field)].filter(Boolean).join(" · ");
    body.append(element("tr", "", element("td", "", element("code", name)), element("td", kind(field, all)),
      element("td", needed), element("td", about)));
    for (const each of [field, field.items ?? {}, ...(field.anyOf ?? [])])
      for (const part of [each, each.items ?? {}])
        if (part.$ref) inner.append(element("details", "", element("summary", part.$ref.split("/").pop()),
          fields(part, all, [...seen, whole.name])));
  }
  const table = element("table", "", body);
  table.tabIndex = 0;  // a wide one is scrolled by keys
  return element("div", whole.description ?? "", table, inner);
}

function route(path, method, operation, all) {
  const verb = element("span", method.toUpperCase());
  verb.className = "method";
  const title = element("summary", "", verb, element("code", path), ` ${operation.summary ?? ""}`);
  const parts = [element("p", operation.description ?? "")];
  if (operation.parameters?.length)
    parts.push(element("h3", "Parameters"), fields({ properties: Object.fromEntries(operation.parameters.map(
      (each) => [each.name, { ...each.schema, description: `${each.in}. ${each.description ?? ""}` }])),
    required: operation.parameters.filter((each) => each.required).map((each) => each.name) }, all));
  for (const [type, content] of Object.entries(operation.requestBody?.content ?? {}))
    parts.push(element("h3", `Body (${type})`), fields(content.schema, all));
  for (const [status, response] of Object.entries(operation.responses)) {
    const content = Object.values(response.content ?? {}).find((each) => each.schema);
    parts.push(element("details", "", element("summary", `${status} ${response.description}`),
      content ? fields(content.schema, all) : ""));
  }
  return element("details", "", title, ...parts);
}

async function show() {
  const key = sessionStorage.getItem("key");
  const answer = await fetch("/openapi.json", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  form.hidden = answer.ok;
  if (!answer.ok) {
    problem.textContent = (await answer.json()).error.message;
    return;
  }
  const document_ = await answer.json();
  list.replaceChildren();
  const groups = new Map();
  for (const [path, methods] of Object.entries(document_.paths))
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags?.[0] ?? "";
      if (!groups.has(tag)) groups.set(tag, element("section", "", element("h2", tag)));
      groups.get(tag).append(route(path, method, operation, document_.components.schemas));
    }
  list.append(...groups.values());
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", new FormData(form).get("key").trim());
  show();
});
show();
