"""Gradient flow of a small network in 128 or 220 bits (FLINT): extrapolated, linearly implicit Euler steps.

Independent of the package: another method, another arithmetic, plain coordinates, a dense Jacobian. The method is
SEULEX (Hairer & Wanner, Solving ODEs II, section IV.9) of a fixed order: `num_levels` sequences of 1, 2, ... small
steps, each `(I - h_j J) d = h_j f`, extrapolated to h_j = 0 as polynomials in h_j.
"""

from flint import arb, arb_mat, ctx
from scipy.optimize import brentq


def _product(matrices):
    result = matrices[0]
    for matrix in matrices[1:]:
        result = matrix * result
    return result


def _exact(matrix):
    """The middles of the balls: rounding is not followed, only kept far below the tolerance."""
    return arb_mat(matrix.nrows(), matrix.ncols(), [entry.mid() for entry in matrix.entries()])


class Flow:
    """`dW_l/dt = -M_l^T 2 (A - S) N_l^T`, of the cost |A - S|_F^2; M_l and N_l the products above and below W_l."""

    def __init__(self, layers, target, bits):
        ctx.prec = bits
        self.shapes = [layer.shape for layer in layers]
        self.target = arb_mat(target.tolist())
        self.start = [arb(float(x)) for layer in layers for x in layer.ravel()]

    def _layers(self, flat):
        layers, begin = [], 0
        for rows, columns in self.shapes:
            layers.append(arb_mat(rows, columns, flat[begin : begin + rows * columns]))
            begin += rows * columns
        return layers

    def cost(self, flat):
        gap = _product(self._layers(flat)) - self.target
        return float(sum((x * x for x in gap.entries()), arb(0)).mid())

    def _derivative(self, layers, gap, moved=None):
        """The field, or (with `moved` = (index, direction)) its derivative along a change of one layer."""
        out = []
        depth = len(layers)
        for index in range(depth):
            if moved is None:
                above, below = layers[index + 1 :], layers[:index]
                out += self._term(above, gap, below)
                continue
            place, direction = moved
            change = _product([*layers[:place], direction, *layers[place + 1 :]])
            parts = [self._term(layers[index + 1 :], change, layers[:index])]
            if place != index:
                swapped = [*layers[:place], direction, *layers[place + 1 :]]
                parts.append(self._term(swapped[index + 1 :], gap, swapped[:index]))
            out += [sum(terms, arb(0)) for terms in zip(*parts, strict=True)]
        return out

    @staticmethod
    def _term(above, gap, below):
        result = gap * arb(-2)
        if above:
            result = _product(above).transpose() * result
        if below:
            result = result * _product(below).transpose()
        return result.entries()

    def field(self, flat):
        layers = self._layers(flat)
        return self._derivative(layers, _product(layers) - self.target)

    def jacobian(self, flat):
        layers = self._layers(flat)
        gap = _product(layers) - self.target
        columns = []
        for place, (rows, width) in enumerate(self.shapes):
            for entry in range(rows * width):
                direction = arb_mat(rows, width, [int(entry == other) for other in range(rows * width)])
                columns.append(self._derivative(layers, gap, (place, direction)))
        return arb_mat(columns)  # symmetric

    def step(self, flat, jacobian, h, num_levels):
        """The state after a step of h, and the largest entry of its error estimate."""
        size = len(flat)
        identity = arb_mat([[int(row == column) for column in range(size)] for row in range(size)])
        table = []
        for level in range(1, num_levels + 1):
            part = h / level
            inverse = _exact((identity - jacobian * part).inv())
            state = arb_mat(size, 1, flat)
            for _ in range(level):
                slope = arb_mat(size, 1, self.field(state.entries()))
                state = _exact(state + inverse * slope * part)
            row = [state]
            for column, before in enumerate(table[-1] if table else []):
                factor = arb(level) / (level - column - 1) - 1
                row.append(_exact(row[-1] + (row[-1] - before) * (1 / factor)))
            table.append(row)
        gap = table[-1][-1] - table[-1][-2]
        return table[-1][-1].entries(), max(float(abs(x).mid()) for x in gap.entries())

    def crossings(self, levels, tolerance, num_levels=12):
        """Times at which the cost falls through each of `levels`, with local errors of `tolerance`, absolute."""
        flat, time, h, times = self.start, arb(0), arb(1e-2), []
        while len(times) < len(levels):
            jacobian = self.jacobian(flat)
            while True:
                candidate, error = self.step(flat, jacobian, h, num_levels)
                ratio = tolerance / max(error, 1e-300)
                if ratio >= 1:
                    break
                h = h * max(0.1, 0.8 * ratio ** (1 / num_levels))
            while len(times) < len(levels) and self.cost(candidate) < levels[len(times)]:
                times.append(time + self._within(flat, jacobian, h, levels[len(times)], num_levels))
            flat, time = candidate, (time + h).mid()
            h = (h * min(3.0, 0.8 * ratio ** (1 / num_levels))).mid()
        return [float(t) for t in times]

    def _within(self, flat, jacobian, h, level, num_levels):
        """When within a step the cost is at a level, by steps of their own."""

        def excess(share):
            return self.cost(self.step(flat, jacobian, h * arb(share), num_levels)[0]) - level

        return h * arb(brentq(excess, 1e-9, 1.0, xtol=1e-12))
