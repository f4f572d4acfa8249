"""HTML report of a run: ``build.build_report`` reads the run record, ``render.render_html`` renders one HTML file.

Nothing is imported here, because some commands need only ``formatting``.
"""
