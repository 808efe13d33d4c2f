// What panels are made of.

export const el = (tag, facts = {}, ...children) => {
  const e = Object.assign(document.createElement(tag), facts)
  for (const c of children.flat()) if (c != null) e.append(c)
  return e
}

export const slider = (label, title, min, max, step, value, act) => el('label', { title }, el('span', { textContent: label }), el('input', { type: 'range', min, max, step, value, oninput: e => act(+e.target.value) }))
