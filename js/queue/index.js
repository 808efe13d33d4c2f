// The list of a study's ROIs: what is begun, what comes next, what is done. Small pictures are asked for when
// they are scrolled to.
import { Link } from '../annotator/link.js'

const GROUPS = [['open', 'In work'], ['waiting', 'Next'], ['skipped', 'Set aside'], ['done', 'Done'], ['none', 'Not in the queue']]

const el = (tag, facts = {}, ...children) => {
  const e = Object.assign(document.createElement(tag), facts)
  e.append(...children.flat().filter(c => c != null))
  return e
}

class Session {
  constructor(model) {
    this.listeners = new Set()
    this.pictures = new Map()  // ROI -> address of its picture; null while it is asked for
    this.link = new Link(model)
    this.link.ontrouble = () => this.tell('say', 'Python does not answer.', 'warn'); this.link.onwell = () => this.tell('say', '', 'warn')
    model.on('msg:custom', (message, buffers) => this.hear(message, buffers ?? []))
    this.ask('hello')
  }

  tell(what, ...rest) { for (const listener of this.listeners) listener(what, ...rest) }
  ask(type, more = {}) { this.link.send({ type, ...more }) }

  hear(message, buffers) {
    if (message.to && message.to !== this.link.client) return
    if (message.type === 'heard') this.link.answered(message.n)
    else if (message.type === 'say') this.tell('say', message.text, message.level)
    else if (message.type === 'list') { this.list = message; this.tell('list') }
    else if (message.type === 'picture') { this.pictures.set(message.roi, buffers[0] ? URL.createObjectURL(new Blob([buffers[0]], { type: 'image/jpeg' })) : ''); this.tell('picture', message.roi) }
  }

  picture(roi) {
    if (!this.pictures.has(roi)) { this.pictures.set(roi, null); this.ask('picture', { roi }) }
    return this.pictures.get(roi)
  }

  close() { this.link.close(); for (const url of this.pictures.values()) if (url) URL.revokeObjectURL(url) }
}

class View {
  constructor(session, place) {
    this.session = session
    this.name = el('input', { type: 'text', placeholder: 'Your name', title: 'Labels are kept under this name', maxLength: 100 })
    this.form = el('form', { className: 'bq-name', onsubmit: e => { e.preventDefault(); session.ask('name', { text: this.name.value }) } },
      el('label', { textContent: 'Annotator' }), el('div', {}, this.name, el('button', { textContent: 'Begin', title: 'Label under this name' })))
    this.progress = el('div', { className: 'bq-progress' })
    this.filter = el('input', { type: 'search', placeholder: 'Find a ROI', title: 'Show ROIs whose name, subject or stain holds this text', oninput: () => this.draw() })
    this.items = el('div', { className: 'bq-items' })
    this.message = el('div', { className: 'bq-message', role: 'status' })
    this.root = el('div', { className: 'bq-list', tabIndex: 0 }, this.form, this.progress, this.filter, this.items, this.message)
    this.root.dataset.lmSuppressShortcuts = 'true'
    place.append(this.root)
    this.watch = new IntersectionObserver(seen => seen.forEach(s => { if (s.isIntersecting) this.picture(s.target.dataset.roi) }), { root: this.items, rootMargin: '120px' })
    this.told = (what, ...rest) => this[what](...rest)
    session.listeners.add(this.told)
    if (session.list) this.list()
  }

  list() {
    const { annotator, items } = this.session.list, n = status => items.filter(i => i.status === status).length
    if (document.activeElement !== this.name) this.name.value = annotator
    this.form.querySelector('button').textContent = annotator ? 'Change' : 'Begin'
    this.filter.hidden = this.progress.hidden = !annotator
    this.progress.textContent = `${n('done')} done, ${n('waiting')} waiting`
    this.draw()
  }

  draw() {
    const { items, current } = this.session.list, text = this.filter.value.trim().toLowerCase()
    const shown = items.filter(i => `${i.roi} ${i.subject} ${i.domain}`.toLowerCase().includes(text))
    this.watch.disconnect()
    this.items.replaceChildren(...GROUPS.flatMap(([status, title]) => {
      const those = shown.filter(i => i.status === status)
      return those.length ? [el('h4', { textContent: `${title} (${those.length})` }), ...those.map(i => this.item(i, current))] : []
    }))
    if (!shown.length && items.length) this.items.append(el('p', { textContent: 'No ROI of this name.' }))
    this.items.querySelector('.bq-on')?.scrollIntoView({ block: 'nearest' })
  }

  item({ roi, subject, domain, reason, doubt }, current) {
    const face = el('img', { alt: '' }), why = [domain, reason].filter(Boolean).join(' · ')
    const row = el('button', { type: 'button', className: `bq-item${roi === current ? ' bq-on' : ''}`, title: `Open ${roi} (${subject}): ${why}`, onclick: () => this.session.ask('open', { roi }) },
      face, el('span', { className: 'bq-text' }, el('b', { textContent: roi }), el('span', { textContent: why })),
      doubt == null ? null : el('span', { className: 'bq-doubt', title: `worth of labelling it, against the rest: ${Math.round(100 * doubt)} %` }, Object.assign(el('i'), { style: `height:${Math.round(100 * doubt)}%` })))
    row.dataset.roi = roi
    this.watch.observe(row)
    return row
  }

  picture(roi) {
    const url = this.session.picture(roi)
    if (url) for (const row of this.items.querySelectorAll('.bq-item')) if (row.dataset.roi === roi) row.querySelector('img').src = url
  }

  say(text, level = 'info') { this.message.textContent = text; this.message.className = `bq-message bq-${level}` }

  close() { this.watch.disconnect(); this.session.listeners.delete(this.told) }
}

const sessions = new WeakMap()
const sessionOf = model => { if (!sessions.has(model)) sessions.set(model, new Session(model)); return sessions.get(model) }

export default {
  initialize({ model }) { const session = sessionOf(model); return () => session.close() },
  render({ model, el: place }) {
    const session = sessionOf(model), view = new View(session, place)
    place.bonehisto = { session, view }  // for tests, and for who looks from the console
    return () => view.close()
  },
}
