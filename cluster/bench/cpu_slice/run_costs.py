def start_part(folder, options):
    return []
def checkpoint_part(folder, options):
    return []
