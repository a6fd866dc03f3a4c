// Prints configs/keys.md: build/tests/configs/keys_probe > configs/keys.md
#include <iostream>

#include "configs/schema/read.h"

int main() {
  std::cout << "# Every key of a run\n\nWritten by `tests/configs/keys_probe` from `schema/config.h`; N is a list index, NAME a free "
               "name.\n\n"
            << hanok::key_reference();
}
