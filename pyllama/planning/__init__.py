"""How a budget is divided (memory.py) and what a pass will cost (time.py), for models here and elsewhere."""
