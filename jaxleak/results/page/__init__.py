"""One self-contained page of one or several runs: what was attacked, side by side, curves, tables, settings.

`collect` reads the runs, `choose` says which trials are shown, `pictures` and `curves` encode them, `words` and
`sections` say in text and tables what stands in the settings and rows, and `page` puts all into one HTML file.
"""

from jaxleak.results.page.page import write_page

__all__ = ["write_page"]
