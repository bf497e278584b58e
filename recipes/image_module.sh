# The largest modules, in pixels, of which a block holds enough for RATIO tokens: one of 9 bits takes three of 8 colors. Sourced.
largest_module() {
  local module=14 smaller
  for smaller in 7 4 2; do if [ $((3 * $1)) -gt $(((28 / module) ** 2)) ]; then module=$smaller; fi; done
  echo "$module"
}
# The largest module, in pixels, with which a QR symbol of 41 modules takes no more blocks than LENGTH tokens at RATIO to a block.
largest_qr_module() {
  local module=1
  while [ $((((41 * (module + 1) + 27) / 28) ** 2 * $1)) -le "$2" ]; do module=$((module + 1)); done
  echo "$module"
}
