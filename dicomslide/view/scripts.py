"""What runs in the browser: requests for views, one at a time, and the pointer's position."""

from __future__ import annotations

__all__ = ["ANSWERED", "ASK", "COPY", "JUMP", "LOST", "POINT", "POINTED"]

PATIENCE = 15_000
"""Milliseconds after which a view that isn't answered is said, and asked for at the next change."""

ASK = """
// asks for the view when ranges or the size of the figure change: one request at a time, the last
// view after the answer. Millimetres have one length along x and y.
function ask() {
  asked._planned = false
  const w = Math.round(figure.inner_width), h = Math.round(figure.inner_height)
  if (!(w > 0 && h > 0)) return
  if (asked._count === undefined) {  // first, all of the slide fits in
    const scale = Math.max((x.end - x.start) / w, (y.end - y.start) / h)
    const [a, b] = [(x.start + x.end) / 2, (y.start + y.end) / 2]
    x.setv({start: a - scale * w / 2, end: a + scale * w / 2})
    y.setv({start: b - scale * h / 2, end: b + scale * h / 2})
  }
  const height = (x.end - x.start) / w * h
  if (Math.abs(y.end - y.start - height) > 1e-6 * height) {
    const middle = (y.start + y.end) / 2
    y.setv({start: middle - height / 2, end: middle + height / 2})
  }
  box.data = {x: [(x.start + x.end) / 2], y: [(y.start + y.end) / 2],
              width: [x.end - x.start], height: [y.end - y.start]}
  if (asked._busy && Date.now() - asked._since < PATIENCE) { asked._again = true; return }
  asked._busy = true
  asked._again = false
  asked._since = Date.now()
  asked._count = (asked._count ?? 0) + 1
  asked.data = {x0: [x.start], x1: [x.end], y0: [y.start], y1: [y.end], w: [w], h: [h],
                ratio: [window.devicePixelRatio || 1], n: [asked._count]}
  clearTimeout(asked._timer)
  asked._timer = setTimeout(() => {
    lost.text ||= "No picture yet: the program that makes it is busy, or has ended."
  }, PATIENCE)
}
asked._ask = ask
if (!asked._planned) { asked._planned = true; queueMicrotask(ask) }
""".replace("PATIENCE", str(PATIENCE))

ANSWERED = """
// the server has drawn a view, or says that it can't, and when to ask again; or something stands in
if (!answered.data.n[0]) return
asked._busy = false
clearTimeout(asked._timer)
lost.text = ""
const retry = answered.data.retry[0]
if (asked._again) asked._ask?.()
else if (retry > 0) setTimeout(() => asked._ask?.(), retry)
"""

POINT = """
if (pointed._busy && Date.now() - pointed._since < 2000) {
  pointed._next = [cb_obj.x, cb_obj.y]
  return
}
pointed._busy = true
pointed._since = Date.now()
pointed._next = null
pointed.data = {x: [cb_obj.x], y: [cb_obj.y]}
"""

POINTED = """
pointed._busy = false
if (pointed._next) {
  const [x, y] = pointed._next
  pointed._next = null
  pointed._busy = true
  pointed._since = Date.now()
  pointed.data = {x: [x], y: [y]}
}
"""

LOST = """
lost.text = "The connection to the program that makes pictures is lost. Reload this page; if it"
  + " isn't there, start the program again, and open the address that it prints."
"""

JUMP = """
// the view's centre goes to where the overview is clicked
const width = x.end - x.start, height = y.end - y.start
x.setv({start: cb_obj.x - width / 2, end: cb_obj.x + width / 2})
y.setv({start: cb_obj.y - height / 2, end: cb_obj.y + height / 2})
"""

COPY = "navigator.clipboard.writeText(code.text)"
