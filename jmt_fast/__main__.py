from jmt_fast.cli import main

main()
