"""Reports: the front of a study as tables, files and figures."""

from pbp_search.report.publish import front_csv, front_json, front_table, publish_front, write_front

__all__ = ["front_csv", "front_json", "front_table", "publish_front", "write_front"]
