"""Figures: arrays become plotly figures. The only door to plotly below the apps.

plotly is met in one room, since its labels are a little HTML, its heatmaps merge equal names and
its payloads grow: whoever draws elsewhere would have to know all of that again.
"""

from interp.figures.choose import Plan, drawn_names, plan_of, selectors_of
from interp.figures.draw import figures_of
from interp.figures.folding import WINDOW
from interp.figures.palette import PALETTES, theme
from interp.figures.patterns import pattern_grid, token_rows
from interp.figures.pictures import Picture, figure_json, picture, plotly_script
from interp.figures.tables import Table, table_of
from interp.figures.text import escape, glyphs, number, token_axis

__all__ = [
    "WINDOW",
    "PALETTES",
    "Picture",
    "Plan",
    "Table",
    "drawn_names",
    "escape",
    "figure_json",
    "figures_of",
    "glyphs",
    "number",
    "pattern_grid",
    "picture",
    "plan_of",
    "plotly_script",
    "selectors_of",
    "table_of",
    "theme",
    "token_axis",
    "token_rows",
]
