"""report.html as Python's HTML parser sees it: every element is closed, nothing is loaded from elsewhere, no script, and text of
users stays text. Through the probe that writes what a killed start leaves.
usage: report.py PROBE"""
import html.parser
import subprocess
import sys
import tempfile
import xml.dom.minidom

VOID = {"meta", "img", "br", "link"}


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.names, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "iframe", "object", "link"), f"<{tag}>"
        self.names.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} {name}"
            if name in ("src", "href"):
                assert value.startswith("data:image/"), f"{tag} {name}={value[:60]}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)


def main():
    probe = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        for start in [("a", 0, 1), ("a", 1, 20), ("b", 0, 7)]:  # one step; a stage; two of them
            subprocess.run([probe, folder, *map(str, start)], check=True, stdout=subprocess.DEVNULL)
            with open(f"{folder}/report.html", encoding="utf-8") as file:
                text = file.read()
            page = Page()
            page.feed(text)
            page.close()
            assert not page.open, f"never closed: {page.open}"
            assert 'probe <&> "\'' in page.texts, "the name is not there as text"
            assert page.names.count("svg") >= 4, "charts are missing"
            assert "nan" not in text.lower().split("</style>")[1].split("<h2>how")[0], "a number that is none"
            assert "url(" not in text and "@import" not in text, "something is loaded"
            xml.dom.minidom.parse(f"{folder}/loss.svg")
        print(f"{len(text)} bytes, {len(page.names)} elements, all closed")


if __name__ == "__main__":
    main()
