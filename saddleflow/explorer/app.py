"""The page of the explorer, a marimo app: controls, results, pictures. All that computes is in the other modules."""

# /// script
# [tool.marimo.display]
# theme = "system"
# ///

import marimo

app = marimo.App(width="full", app_title="saddleflow explorer")


@app.cell
def _():
    import marimo as mo

    from saddleflow.explorer import page

    return mo, page


@app.cell
def _(mo, page):
    # The link is read once, into no global name: cells that hold the parameters would run again at every change.
    first, trouble = page.read_link(mo)
    controls = page.make_controls(mo, first)
    place = page.Place(first.position)
    get_position, set_position = mo.state(first.position)
    return controls, get_position, place, set_position, trouble


@app.cell
def _(controls, mo, page, trouble):
    page.header(mo, controls, trouble)
    return


@app.cell
def _(controls, mo, page, place):
    found, complaint = page.compute(mo, controls.value, place.position)
    complaint
    return (found,)


@app.cell
def _(mo):
    playing = mo.ui.switch(label="Play")
    return (playing,)


@app.cell
def _(mo, page, playing):
    clock = page.clock(mo, playing.value)
    return (clock,)


@app.cell
def _(clock, place, playing, set_position):
    _tick = clock.value
    if playing.value:
        set_position(place.next())
    return


@app.cell
def _(get_position, mo, page):
    marker = page.marker(mo, get_position())
    return (marker,)


@app.cell
def _(clock, found, marker, mo, page, place, playing):
    place.position = marker.value
    page.results(mo, found, marker.value, page.beside(mo, marker, playing, clock))
    return


@app.cell
def _(found, marker, mo, page):
    page.write_link(mo, found, marker.value)
    return


@app.cell
def _(found, marker, mo, page):
    page.downloads(mo, found, marker.value)
    return


if __name__ == "__main__":
    app.run()
