// The widget: one session per model, any number of views.
import { Panel } from './panel.js'
import { Session } from './session.js'
import { View } from './view.js'

const sessions = new WeakMap()
const sessionOf = model => { if (!sessions.has(model)) sessions.set(model, new Session(model)); return sessions.get(model) }

function initialize({ model }) {
  const session = sessionOf(model)
  return () => session.close()
}

function render({ model, el }) {
  try {
    const session = sessionOf(model), root = document.createElement('div'), stage = document.createElement('div')
    root.className = 'bm-map'; root.tabIndex = 0; root.dataset.lmSuppressShortcuts = 'true'
    stage.className = 'bm-stage'; stage.style.height = `${model.get('height') || 440}px`
    el.append(root)
    const view = new View(session, stage, root), panel = new Panel(session, view, root, stage)
    const open = () => { panel.open(); panel.gallery(); panel.focus(); view.open() }
    const told = {
      map: open, colour: () => { panel.legend(); view.draw() }, hidden: () => { panel.hidden(); view.draw() },
      chosen: () => { panel.chosen(); view.draw() }, gallery: () => panel.gallery(), focus: () => { panel.focus(); view.drawOver(); view.showCard() },
      look: () => { view.drawOver(); view.showCard() }, near: () => panel.others(), say: (text, level) => panel.say(text, level), silence: yes => panel.silence(yes),
    }
    const leave = session.subscribe((what, ...rest) => told[what]?.(...rest))
    if (session.ready) open()
    el.bonehisto = { session, view, panel }  // for tests, and for who looks from the console
    return () => { leave(); view.close(); panel.close() }
  } catch (error) {
    const box = document.createElement('pre')
    box.className = 'bm-message bm-error'; box.textContent = `The map could not be drawn: ${error.message}`
    el.append(box)
    throw error
  }
}

export default { initialize, render }
