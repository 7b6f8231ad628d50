"""How results look: colours, themes, sizes, labels that never collide, curves and maps on axes, cards in notebooks.

It draws from arrays and knows no science. Names are loaded when they are first used, and matplotlib with those that
need it, so that `from saddleflow import plotting` costs nothing::

    with plotting.style(theme="light", width="column"):
        figure, axes = plotting.subplots(figsize=plotting.figure_size("column", 2.4))
        plotting.draw_costs(axes, trajectory.time, trajectory.train_cost, trajectory.test_cost)
    plotting.save_figure(figure, "costs")
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
