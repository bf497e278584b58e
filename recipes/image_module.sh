# Sourced. largest_module RATIO [BITS]: the largest modules of 8 colors, in pixels, of which a block holds enough for RATIO tokens of BITS each.
largest_module() {
  local module=14 smaller
  for smaller in 7 4 2; do if [ $((${2:-9} * $1)) -gt $((3 * (28 / module) ** 2)) ]; then module=$smaller; fi; done
  echo "$module"
}
# The largest module, in pixels, with which a QR symbol of 41 modules takes no more blocks than LENGTH tokens at RATIO to a block.
largest_qr_module() {
  local module=1
  while [ $((((41 * (module + 1) + 27) / 28) ** 2 * $1)) -le "$2" ]; do module=$((module + 1)); done
  echo "$module"
}
