"""What a run came to, for people: ``build.build_report`` reads its record into a value, ``render.render_html`` makes
one self-contained HTML file of it. Nothing is imported here, because commands need ``formatting`` alone.
"""
