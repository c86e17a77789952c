/** How a node of the page is found, made and changed; nothing is ever parsed as HTML. */

export const byId = (id) => document.getElementById(id);

/** Make an element; an attribute that is null, undefined or false is left out. */
export function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(...children);
  return node;
}

/** Touch the node only where its text changes: a selection and a screen reader stay where they are. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
