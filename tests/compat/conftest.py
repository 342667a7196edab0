collect_ignore = ["flower_app.py"]  # a program for Flower, which may not be installed
