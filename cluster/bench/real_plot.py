"""The plot of real_run.py: both loss curves above, their distance beside the tolerance below. SVG written by hand: no library, few bytes."""
import math

WIDTH, LEFT, RIGHT = 900, 64, 16
UPPER, LOWER = (40, 300), (352, 520)  # top and bottom of the two panels
COLOURS = ["#c0392b", "#2471a3", "#1e8449"]


class Axis:
    """A logarithmic or linear axis from pixels `begin` to `end`."""

    def __init__(self, low, high, begin, end, log=False):
        self.low, self.high, self.begin, self.end, self.log = low, high, begin, end, log

    def __call__(self, value):
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.begin + share * (self.end - self.begin), 1)


def line(xs, ys, colour, width=1.2, extra=""):
    points = " ".join(f"{x:g},{y:g}" for x, y in zip(xs, ys))
    return f'<polyline fill="none" stroke="{colour}" stroke-width="{width}" {extra} points="{points}"/>'


def text(x, y, words, colour="#333", anchor="start", size=12):
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}" font-size="{size}">{words}</text>'


def mark(x, words, colour, anchor, row):
    """A vertical line through both panels, and what happened there."""
    return (f'<line x1="{x}" x2="{x}" y1="{UPPER[0]}" y2="{LOWER[1]}" stroke="{colour}" stroke-dasharray="4 3"/>'
            + text(x - 4 if anchor == "end" else x + 4, UPPER[0] + 16 + 16 * row, words, colour, anchor, 11))


def decades(axis, labels):
    parts = []
    for power in range(math.ceil(math.log10(axis.low) - 1e-9), math.floor(math.log10(axis.high) + 1e-9) + 1):
        y = axis(10.0 ** power)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>' + text(LEFT - 6, y + 4, labels(power), anchor="end", size=11))
    return parts


def panel(bottom, top, title):
    return (f'<rect x="{LEFT}" y="{top}" width="{WIDTH - RIGHT - LEFT}" height="{bottom - top}" fill="none" stroke="#888"/>' + text(LEFT, top - 7, title))


def write(path, curve, story, accuracy):
    """`curve`: what real_run.compare returns; `story`: layouts and steps of the disturbed run; `accuracy`: words for the foot."""
    order = curve["order"]
    place = {p: i + 1 for i, p in enumerate(order)}
    align = sum(p.stage == "align" for p in order)
    x = Axis(1, len(order), LEFT + 2, WIDTH - RIGHT - 2)
    losses = curve["calm"] + [loss for _, steps in curve["parts"] for loss in steps.values()]
    y = Axis(min(losses) * 0.9, max(losses) * 1.1, UPPER[1], UPPER[0], log=True)
    highest = max(d for name in ("distance", "spread", "tolerance") for d in curve[name])
    z = Axis(10.0 ** math.floor(math.log10(highest) - 3), 2 * highest, LOWER[1], LOWER[0], log=True)  # what is less, 0 too, lies on the lower edge
    xs = [x(i + 1) for i in range(len(order))]
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 560" font-family="sans-serif"><rect width="{WIDTH}" height="560" fill="#fff"/>']
    parts += decades(y, lambda p: f"{10.0 ** p:g}") + decades(z, lambda p: f"1e{p}")
    for loss in (0.2, 0.5, 2, 5):
        if y.low < loss < y.high:
            parts.append(text(LEFT - 6, y(loss) + 4, f"{loss:g}", anchor="end", size=11))
    parts += [panel(UPPER[1], UPPER[0], "loss: undisturbed (grey, wide) and disturbed (by layout)"),
              panel(LOWER[1], LOWER[0], "distance from the undisturbed loss: disturbed (red), of a second undisturbed run (grey), tolerance (dashed); "
                    "lower edge: none or less")]
    parts.append(line(xs, map(y, curve["calm"]), "#bbb", 4.5))
    row = 0
    for (layout, steps), colour in zip(curve["parts"], COLOURS):
        if not steps:
            continue
        points = sorted((place[p], loss) for p, loss in steps.items())
        parts.append(line([x(i) for i, _ in points], [y(loss) for _, loss in points], colour))
        parts.append(text(WIDTH - RIGHT - 8, UPPER[0] + 80 + 15 * row, f"{layout}, steps {points[0][0]} to {points[-1][0]}", colour, "end"))
        row += 1
    parts.append(line(xs, map(z, curve["spread"]), "#999"))
    parts.append(line(xs, map(z, curve["tolerance"]), "#333", 1.2, 'stroke-dasharray="5 4"'))
    parts.append(line(xs, map(z, curve["distance"]), COLOURS[0]))
    parts += [mark(x(align + 0.5), "all weights train", "#888", "start", 0),
              mark(x(align + story["resumed"] + 0.5), f"restart from here, {curve['parts'][1][0]}", COLOURS[1], "end", 1),
              mark(x(align + story["killed"]), "kill -9 of a rank", COLOURS[0], "start", 1),
              mark(x(align + story["stopped"] + 0.5), f"SIGTERM, on as {curve['parts'][2][0]}", COLOURS[2], "start", 2)]
    for step in range(0, len(order) + 1, 50 if len(order) > 120 else 10):
        parts.append(text(x(max(1, step)), LOWER[1] + 15, str(step), anchor="middle", size=11))
    parts.append(text(LEFT, LOWER[1] + 34, f"Step, both stages end to end. Held-out accuracy at the end (95 %): {accuracy}"))
    with open(path, "w", encoding="utf-8") as out:
        out.write("\n".join(parts) + "\n</svg>\n")
