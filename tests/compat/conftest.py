collect_ignore = ["flower_app.py", "quickstart.py"]  # programs for Flower, which may not be installed
