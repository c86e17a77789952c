"""Translate CORE-SITE.XML_key=value and HDFS-SITE.XML_key=value as the apache/hadoop image does, then run a command."""

import os
import sys
from pathlib import Path
from xml.sax.saxutils import escape

files: dict[str, dict[str, str]] = {}
for name, value in os.environ.items():
    file, separator, key = name.partition(".XML_")
    if separator:
        files.setdefault(f"{file.lower()}.xml", {})[key] = value
for file, pairs in files.items():
    rows = (f"<property><name>{escape(k)}</name><value>{escape(v)}</value></property>\n" for k, v in pairs.items())
    Path(os.environ["HADOOP_CONF_DIR"], file).write_text(f"<configuration>\n{''.join(rows)}</configuration>\n")
os.execvp(sys.argv[1], sys.argv[1:])
