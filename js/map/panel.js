// All about the map: buttons, colour and legend, the tile gone to and its neighbours, the gallery of what is chosen, keys.

const el = (tag, facts = {}, ...children) => {
  const e = Object.assign(document.createElement(tag), facts)
  for (const c of children.flat()) if (c != null) e.append(c)
  return e
}
const many = n => n.toLocaleString('en')

export class Panel {
  constructor(session, view, root, stage) {
    Object.assign(this, { session, view, root })
    const button = (text, title, act, facts = {}) => el('button', { type: 'button', textContent: text, title, onclick: act, ...facts })
    this.tools = { pan: button('Move', 'Drag moves the map, the wheel zooms (V)', () => this.choose('pan')), lasso: button('Lasso', 'Drag round the tiles you mean (L, or hold Shift). Ctrl adds, Alt takes away', () => this.choose('lasso')) }
    this.colour = el('select', { title: 'What colours the points', onchange: e => { session.colour(e.target.value); this.take() } })
    this.count = el('span', { className: 'bm-count' })
    this.clear = button('Clear', 'Choose none (Escape)', () => session.clear())
    this.bar = el('div', { className: 'bm-bar' }, ...Object.values(this.tools), button('Fit', 'Whole map (F)', () => view.fit()), button('+', 'Zoom in (+)', () => view.zoom(1.4)), button('−', 'Zoom out (-)', () => view.zoom(1 / 1.4)),
      el('label', {}, 'Colour ', this.colour),
      el('label', { title: 'Brightens the pictures of tiles, for display only' }, 'Light ', el('input', { type: 'range', min: 1, max: 6, step: 0.25, value: 1, oninput: e => root.style.setProperty('--bm-light', e.target.value) })), el('span', { className: 'bm-space' }), this.count, this.clear)
    this.key = el('div', { className: 'bm-legend' })
    this.tile = el('div', { className: 'bm-tile' })
    this.otherBox = el('input', { type: 'checkbox', onchange: e => session.fromOthers(e.target.checked) })
    this.nearTiles = el('div', { className: 'bm-tiles' })
    this.takeNear = button('Choose these', 'Make the tile and its neighbours the selection', () => session.select([session.focus.point, ...session.focus.near]))
    this.nearPart = el('div', { className: 'bm-nearest', hidden: true }, el('div', { className: 'bm-row' }, el('b', { textContent: 'Nearest tiles' }), this.takeNear), el('label', {}, this.otherBox, ' other subjects only'), this.nearTiles)
    this.side = el('div', { className: 'bm-side' }, this.tile, this.nearPart)
    this.shown = el('span', { className: 'bm-shown' })
    this.back = button('‹', 'Earlier tiles', () => session.page(session.gallery.start - session.gallery.most)); this.on = button('›', 'Further tiles', () => session.page(session.gallery.start + session.gallery.most))
    this.sample = button('Draw at random', 'A random sample of the chosen tiles', () => session.sample())
    this.queue = button('Send to queue', 'Put the chosen tiles before the annotators', () => session.ask('queue'))
    this.cls = el('select', { title: 'The class that all chosen tiles get', onchange: () => { this.label.disabled = !this.cls.value } })
    this.label = button('Label all', 'Give every chosen tile this class', () => session.ask('label', { cls: +this.cls.value }))
    this.exported = button('Export these ids', 'Write the chosen tiles to a CSV file', () => session.ask('export'))
    this.head = el('div', { className: 'bm-bar', hidden: true }, this.shown, this.back, this.on, this.sample, el('span', { className: 'bm-space' }), this.queue, el('span', { className: 'bm-label' }, this.cls, this.label), this.exported)
    this.tiles = el('div', { className: 'bm-gallery', hidden: true })
    this.message = el('div', { className: 'bm-message', role: 'status', textContent: 'Waiting for Python ...' })
    root.append(this.bar, el('div', { className: 'bm-middle' }, stage, this.key, this.side), this.head, this.tiles, this.message)
    this.side.style.maxHeight = this.key.style.maxHeight = stage.style.height
    this.choose('pan')
    root.addEventListener('keydown', this.pressed = e => this.press(e))
    root.addEventListener('click', this.clicked = e => { if (!e.target.matches('select, input, label') && (e.detail || !e.target.offsetParent)) this.take() })  // keys go on working after the mouse
  }

  take() { this.root.focus({ preventScroll: true }) }

  // What is replaced while it has the focus hands it to the map, or keys would go to the notebook.
  fill(box, children) {
    const had = box.contains(document.activeElement)
    box.replaceChildren(...children)
    if (had) this.take()
  }

  open() {
    const { facts, column } = this.session
    this.colour.replaceChildren(...facts.columns.map(([value, textContent]) => el('option', { value, textContent })))
    this.colour.value = column
    this.queue.hidden = !facts.can.queue; this.cls.hidden = this.label.hidden = !facts.can.label; this.exported.hidden = !facts.can.export
    this.legend(); this.chosen(); this.say('')
    this.tile.replaceChildren(el('p', { className: 'bm-hint', textContent: `Point at a tile to see it, click it to ${facts.can.open ? 'open its ROI there' : 'keep it'}${facts.can.near ? ' and find its nearest' : ''}. Draw a lasso to choose many.` }))
  }

  choose(tool) {
    this.view.tool = tool; this.view.stage.dataset.tool = tool
    for (const [name, b] of Object.entries(this.tools)) { b.classList.toggle('bm-on', name === tool); b.setAttribute('aria-pressed', name === tool) }
  }

  legend() {
    const { session } = this, { kind, names, counts, colours, ends, column } = session.colouring
    this.colour.value = column
    this.keys = new Map(session.codes.map((code, k) => {
      const swatch = el('span', { className: 'bm-swatch' })
      swatch.style.background = colours[code]
      const act = e => { if (e.detail === 2) session.toggle(code); session.toggle(code, e.altKey || e.detail === 2) }  // the first click of two is taken back
      return [code, el('button', { type: 'button', className: 'bm-key', title: 'Click hides or shows; double click (or Alt) shows it alone', hidden: kind === 'numbers' && !counts[k], onclick: act },
        swatch, el('span', { textContent: names[k], className: 'bm-what' }), el('span', { textContent: many(counts[k]), className: 'bm-n' }))]
    }))
    const scale = kind === 'numbers' ? [el('div', { className: 'bm-scale' }), el('div', { className: 'bm-ends' }, el('span', { textContent: ends[0] }), el('span', { textContent: ends[1] }))] : []
    if (scale.length) scale[0].style.background = `linear-gradient(to right, ${colours.slice(0, -1).filter((_, i) => i % 15 === 0).join(',')})`
    this.all = el('button', { type: 'button', textContent: 'Show all', onclick: () => session.showAll() })
    this.key.replaceChildren(el('b', { textContent: session.facts.columns.find(([c]) => c === column)?.[1] ?? '' }), ...scale, ...this.keys.values(), this.all)
    this.hidden()
  }

  hidden() {
    const { hidden } = this.session
    for (const [code, row] of this.keys) { row.classList.toggle('bm-off', hidden.has(code)); row.setAttribute('aria-pressed', !hidden.has(code)) }
    this.all.hidden = !hidden.size
  }

  chosen() {
    const { count, n } = this.session
    this.count.textContent = count ? `${many(count)} of ${many(n)} tiles chosen` : `${many(n)} tiles`
    this.clear.disabled = !count
    if (!count) { this.head.hidden = this.tiles.hidden = true; this.fill(this.tiles, []) }
    else if (!this.head.hidden) this.tiles.classList.add('bm-old')  // until the new ones come
  }

  // A picture out of a sprite, or a name where there are no pictures.
  picture({ url, across, points, near }, k, point, name, title) {
    const n = (points ?? near).length, rows = Math.ceil(n / across), face = el('button', { type: 'button', className: 'bm-face', title, ariaLabel: title, onclick: () => this.session.go(point) })
    face.dataset.point = point
    if (url) Object.assign(face.style, { backgroundImage: `url(${url})`, backgroundSize: `${100 * across}% ${100 * rows}%`, backgroundPosition: `${across > 1 ? 100 * (k % across) / (across - 1) : 0}% ${rows > 1 ? 100 * Math.floor(k / across) / (rows - 1) : 0}%` })
    else face.textContent = name
    face.onpointerenter = face.onfocus = () => { this.view.last = null; this.session.look(point) }
    face.onpointerleave = face.onblur = () => this.session.look(-1)
    return face
  }

  gallery() {
    const { gallery, facts, count } = this.session
    this.head.hidden = this.tiles.hidden = !gallery?.total
    this.tiles.classList.remove('bm-old')
    if (!gallery?.total) return
    const { points, names, start, total, most, random } = gallery
    this.shown.textContent = random ? `${many(points.length)} of ${many(total)}, at random` : total > most ? `${many(start + 1)}–${many(start + points.length)} of ${many(total)}` : `${many(points.length)} of ${many(total)}`
    this.back.hidden = this.on.hidden = this.sample.hidden = total <= most
    this.back.disabled = !random && start === 0; this.on.disabled = !random && start + most >= total
    this.label.textContent = `Label all ${many(total)}`; this.queue.textContent = `Send ${many(total)} to queue`
    if (facts.can.label) {
      const before = this.cls.value
      this.cls.replaceChildren(...[['', gallery.classes.length ? 'class ...' : 'no shared class'], ...gallery.classes].map(([value, textContent]) => el('option', { value, textContent })))
      if (gallery.classes.some(([id]) => `${id}` === before)) this.cls.value = before
      this.cls.disabled = !gallery.classes.length; this.label.disabled = !this.cls.value  // a class is chosen, never taken over from nobody
      this.label.title = gallery.why || 'Give every chosen tile this class'
    }
    this.fill(this.tiles, points.map((point, k) => {
      const out = el('button', { type: 'button', className: 'bm-out', textContent: '×', title: 'Leave this tile out', ariaLabel: `Leave ${names[k]} out`, onclick: () => this.session.select([point], { way: 'without', stay: true }) })
      return el('div', { className: 'bm-cell' }, this.picture(gallery, k, point, names[k], names[k]), out)
    }))
  }

  focus() {
    const { focus, facts } = this.session
    this.nearPart.hidden = !focus || !facts.can.near
    if (!focus) return
    this.others()
    this.tile.replaceChildren(...(focus.picture ? [el('img', { src: focus.picture, alt: '', className: 'bm-large' })] : []), el('div', { className: 'bm-name', textContent: focus.name }),
      el('table', {}, focus.facts.map(([name, value]) => el('tr', {}, el('td', { textContent: name }), el('td', { textContent: value })))))
    this.takeNear.disabled = !focus.near.length
    this.fill(this.nearTiles, focus.near.map((point, k) => el('div', { className: 'bm-cell' }, this.picture(focus, k, point, focus.names[k], `${focus.names[k]}, likeness ${focus.scores[k].toFixed(3)}`), el('span', { className: 'bm-score', textContent: focus.scores[k].toFixed(2) }))))
    if (!focus.near.length) this.nearTiles.textContent = 'There is none.'
  }

  others() { this.otherBox.checked = this.session.others }

  say(text, level = 'info') { this.message.textContent = text; this.message.className = `bm-message bm-${level}` }

  silence(yes) {
    if (!yes) { if (this.silent) this.say('Python answers again.'); this.silent = false; return }
    this.silent = true
    this.say(this.session.ready ? 'Python does not answer: it is busy or gone. The map can still be moved; tiles and buttons wait. If it was restarted, run the cell again.' : 'Python does not answer. Run the cell again to use the map.', 'warn')
  }

  press(e) {
    if (e.ctrlKey || e.metaKey || e.altKey || e.key === 'Tab') return
    e.stopPropagation()  // a plain key is no business of the notebook
    if (e.target.tagName === 'SELECT' || e.target.tagName === 'INPUT') return
    const { session, view } = this, k = e.key.toLowerCase(), step = 60
    const arrows = { arrowleft: [step, 0], arrowright: [-step, 0], arrowup: [0, step], arrowdown: [0, -step] }
    if (arrows[k]) view.pan(...arrows[k])
    else if (k === '+' || k === '=') view.zoom(1.4)
    else if (k === '-') view.zoom(1 / 1.4)
    else if (k === 'f') view.fit()
    else if (k === 'l') this.choose('lasso')
    else if (k === 'v') this.choose('pan')
    else if (k === 'escape') { if (!view.drop()) session.clear(); session.look(-1) }
    else return
    e.preventDefault()
  }

  close() { this.root.removeEventListener('keydown', this.pressed); this.root.removeEventListener('click', this.clicked); this.root.remove() }
}
