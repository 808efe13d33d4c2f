// The widget: one session per model, any number of views.
import { Panel } from './panel.js'
import { Pointer } from './tools.js'
import { Session } from './session.js'
import { View } from './view.js'

const sessions = new WeakMap()
const sessionOf = model => { if (!sessions.has(model)) sessions.set(model, new Session(model)); return sessions.get(model) }

function initialize({ model }) {
  const session = sessionOf(model)
  return () => { session.close(); sessions.delete(model) }
}

function render({ model, el }) {
  try {
    const session = sessionOf(model), root = document.createElement('div'), stage = document.createElement('div')
    root.className = 'bh-annotator'; root.tabIndex = 0; root.dataset.lmSuppressShortcuts = 'true'
    stage.className = 'bh-stage'; stage.style.height = `${model.get('height') || 560}px`
    el.append(root)
    const middle = document.createElement('div'), side = document.createElement('div')  // laid out before the viewer measures its place
    middle.className = 'bh-middle'; side.className = 'bh-side'; side.style.maxHeight = stage.style.height; middle.append(stage, side)
    root.append(middle)
    const view = new View(session, stage), pointer = new Pointer(session, view), panel = new Panel(session, view, pointer, root, side)
    root.prepend(panel.bar); root.append(panel.message)
    if (model.get('compact')) { root.classList.add('bh-compact'); panel.choose('pan') }
    const open = anew => { pointer.drop(); view.open(); panel.open(anew); panel.history() }
    const told = {
      roi: open, mask: box => { view.renew('classes', box); panel.areas() }, proposal: box => view.renew('proposal', box), chosen: () => panel.chosen(),
      marks: () => { view.drawMarks(); panel.legend() }, look: () => view.draw(), history: () => panel.history(), readout: () => panel.lengths(),
      say: (text, level) => panel.say(text, level), trouble: (n, why) => panel.trouble(n, why), well: () => panel.well(), proposed: m => panel.proposed(m),
      go: box => view.goTo(box),
    }
    const leave = session.subscribe((what, ...rest) => told[what]?.(...rest))
    if (session.ready) open(true)
    el.bonehisto = { session, view, panel, pointer }  // for tests, and for who looks from the console
    return () => { leave(); view.close(); root.remove() }
  } catch (error) {
    const box = document.createElement('pre')
    box.className = 'bh-message bh-error'; box.textContent = `The annotator could not be drawn: ${error.message}`
    el.replaceChildren(box)
    throw error
  }
}

export default { initialize, render }
