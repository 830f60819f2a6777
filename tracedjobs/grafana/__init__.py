"""What is shipped for Grafana and Prometheus: dashboards, rules and runbooks, as plain files.

The dashboards are written by `make dashboards`. Nothing of Grafana is needed to read them here.
"""
