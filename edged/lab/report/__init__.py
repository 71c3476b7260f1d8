"""A run's folder as pictures and one page: `report.html`, self-contained, and `plots/*.png`.

`figures` computes what is shown (pure), `plots` draws it, `page` writes the HTML, `building` puts
the files in the folder. Whatever stands in a run's rows is text from a stranger: it is cut,
stripped of what does not print, and escaped.
"""
