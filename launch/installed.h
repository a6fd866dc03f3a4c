// Where the files that come with the program lie.
#pragma once

#include <string>

namespace hanok {

/// The folder `configs` of the working directory, else of the checkout or the installation that holds this executable.
/// errors: kIo with the places that were looked at
std::string configs_folder();

}  // namespace hanok
