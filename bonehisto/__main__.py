from bonehisto.cli import main

main()
