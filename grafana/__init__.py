"""The dashboards and Grafana's own alerts as code: `make dashboards` writes what the package ships.

Not part of the package: it needs `grafana-foundation-sdk`, and the JSON does not. Nothing here is
read at run time.
"""
